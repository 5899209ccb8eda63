"""The sparse softmax of the C++ core against float64 torch, in every mode, storage and split."""

import itertools

import numpy as np
import pytest
import torch

from qcompile.errors import DataError
from qcompile.optim import SGD, Adam
from qcompile.optim.row_updates import RowUpdates
from qcompile.runtime import _core


class Problem:
    """A batch for a layer: tensors, labels and hash tables."""

    def __init__(self, examples=13, depth=19, neurons=90, width=3, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(examples, depth, generator=generator)
        self.weight = torch.randn(neurons, depth, generator=generator).to(dtype)
        self.bias = torch.randn(neurons, generator=generator).to(dtype)
        self.scale = torch.randn(examples, generator=generator)
        self.labels = torch.randint(-1, neurons, (examples, width), generator=generator)
        self.labels[:, 0].clamp_(min=0)
        self.tables = _core.LshTables(depth, neurons, "simhash", 6, 2, 16, "fifo", 1)
        self.tables.build(self.weight)

    def sample(self, active=12, negatives=20, mode="lsh", step=0, threads=1, **options):
        return _core.SparseSoftmax(
            self.tables,
            self.hidden,
            options.pop("labels", self.labels),
            len(self.weight),
            active,
            negatives,
            7,
            step,
            threads,
            mode=mode,
            **options,
        )

    def run(self, batch):
        """Return log-probabilities and the dense gradients of hidden, weight and bias."""
        log_prob = torch.from_numpy(batch.forward(self.hidden, self.weight, self.bias))
        return log_prob, *self.backward(batch)

    def backward(self, batch):
        rows = torch.from_numpy(batch.rows)
        grad_hidden = torch.empty_like(self.hidden)
        grad_rows = torch.empty(len(rows), self.hidden.shape[1])
        grad_bias = torch.empty(len(rows))
        batch.backward(self.hidden, self.weight, self.scale, grad_hidden, grad_rows, grad_bias)
        grads = torch.zeros(self.weight.shape), torch.zeros(len(self.weight))
        grads[0][rows], grads[1][rows] = grad_rows, grad_bias
        return grad_hidden, *grads

    def expected(self, batch):
        """Return what :meth:`run` should, in float64, for the neurons that ``batch`` activated."""
        inputs = [self.hidden, self.weight, self.bias]
        hidden, weight, bias = (x.double().requires_grad_() for x in inputs)
        logits = hidden @ weight.T + bias
        shared = torch.from_numpy(batch.shared.astype(np.int64))
        log_probs = []
        for example, own in enumerate(batch.own):
            own = torch.from_numpy(own.astype(np.int64))
            foreign = ~torch.isin(shared, own)
            others, drawn = shared[foreign], torch.from_numpy(batch.drawn)[foreign]
            corrected = logits[example, others] + float(batch.correction[example]) * drawn
            normaliser = torch.cat([logits[example, own], corrected]).logsumexp(0)
            labels = self.labels[example][self.labels[example] >= 0].unique()
            log_probs.append(logits[example, labels].mean() - normaliser)
        log_prob = torch.stack(log_probs)
        (log_prob * self.scale).sum().backward()
        return log_prob.detach(), hidden.grad, weight.grad, bias.grad


def close(found, expected, tolerance=2e-5):
    for value, reference in zip(found, expected, strict=True):
        error = (value.double() - reference).abs().max()
        assert error <= tolerance * max(1.0, reference.abs().max().item())


SHAPES = [
    {},
    {"examples": 1},
    {"depth": 1},
    {"depth": 3, "neurons": 40},
    {"depth": 130, "examples": 33},
    {"neurons": 1},
    {"neurons": 400, "examples": 40, "depth": 64},
    {"width": 70},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("mode", "active", "negatives"),
    [
        ("lsh", 12, 20),
        ("lsh", 12, 0),
        ("lsh", 1, 500),
        ("lsh", 500, 0),
        ("sampled", 12, 20),
        ("sampled", 12, 0),
        ("full", 1, 0),
    ],
)
def test_values_and_gradients(shape, mode, active, negatives):
    problem = Problem(**shape)
    batch = problem.sample(active, negatives, mode)
    close(problem.run(batch), problem.expected(batch))
    rows = batch.rows
    assert (np.diff(rows) > 0).all()
    assert set(rows) == set(batch.shared).union(*map(set, batch.own))


@pytest.mark.parametrize("mode", ["lsh", "sampled", "full"])
def test_bfloat16_weights(mode):
    # Hidden activations and factors are rounded once each, to 8 bits.
    for shape in ({}, {"depth": 3}, {"depth": 130, "examples": 33}, {"neurons": 300}):
        problem = Problem(**shape, dtype=torch.bfloat16)
        batch = problem.sample(mode=mode)
        close(problem.run(batch), problem.expected(batch), tolerance=0.03)


@pytest.mark.parametrize("labels", [0, 7])
def test_all_labels_equal(labels):
    problem = Problem()
    problem.labels[:] = labels
    batch = problem.sample()
    close(problem.run(batch), problem.expected(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["lsh", "sampled", "full"])
def test_threads_give_the_same_bits(mode, dtype):
    problem = Problem(examples=50, depth=40, neurons=1500, dtype=dtype)
    alone = problem.run(problem.sample(mode=mode, negatives=700, threads=1))
    for threads in (2, 3):
        other = problem.run(problem.sample(mode=mode, negatives=700, threads=threads))
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))


@pytest.mark.parametrize("mode", ["full", "lsh"])
def test_with_everything_active_it_is_the_dense_softmax(mode):
    problem = Problem(neurons=700, width=1)
    hidden, weight, bias = (
        x.double().requires_grad_() for x in (problem.hidden, problem.weight, problem.bias)
    )
    scores = torch.nn.functional.linear(hidden, weight, bias)
    log_prob = -torch.nn.functional.cross_entropy(scores, problem.labels[:, 0], reduction="none")
    (log_prob * problem.scale).sum().backward()
    found = problem.run(problem.sample(active=700, mode=mode))
    close(found, (log_prob.detach(), hidden.grad, weight.grad, bias.grad), tolerance=1e-5)


def test_logits_that_are_not_kept_are_computed_again():
    # More than 2^24 logits are; the rows' gradients then need the biases of the forward.
    problem = Problem(examples=900, depth=2, neurons=19_000, width=1)
    hidden, weight, bias = problem.hidden, problem.weight, problem.bias
    log_prob, *grads = problem.run(problem.sample(mode="full"))
    for x in (hidden, weight, bias):
        x.requires_grad_()
    expected = torch.nn.functional.linear(hidden, weight, bias).log_softmax(1)
    expected = expected.gather(1, problem.labels)[:, 0]
    (expected * problem.scale).sum().backward()
    close((log_prob, *grads), (expected.detach(), hidden.grad, weight.grad, bias.grad), 1e-4)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_make_up_the_whole(shards):
    problem = Problem(neurons=93)
    whole = problem.run(problem.sample(mode="full"))
    edges = np.linspace(0, 93, shards + 1).astype(int)
    parts = []
    for start, end in itertools.pairwise(edges):
        part = Problem(neurons=93)
        part.weight, part.bias = part.weight[start:end], part.bias[start:end]
        inside = (part.labels >= start) & (part.labels < end)
        part.labels = torch.where(inside, part.labels - start, -1)
        part.tables = None
        batch = part.sample(mode="full", allow_unlabelled=True)
        parts.append((part, batch, batch.partial(part.hidden, part.weight, part.bias)))
    tops, totals, sums, counts = (
        torch.stack([torch.from_numpy(result[i]) for *_, result in parts]) for i in range(4)
    )
    normaliser = (tops + totals.log()).logsumexp(0)
    log_prob = sums.sum(0) / counts.sum(0) - normaliser
    grad_hidden, rows = 0, []
    for part, batch, _ in parts:
        batch.finish(normaliser, counts.sum(0))
        hidden, *of_rows = part.backward(batch)
        grad_hidden = grad_hidden + hidden
        rows.append(of_rows)
    weight, bias = (torch.cat(each) for each in zip(*rows, strict=True))
    close((log_prob, grad_hidden, weight, bias), [x.double() for x in whole])


def test_an_example_needs_a_label_in_some_shard():
    problem = Problem()
    problem.labels[2] = -1
    with pytest.raises(DataError, match="example 2 has no label"):
        problem.sample()
    batch = problem.sample(mode="sampled", negatives=0, allow_unlabelled=True)
    parts = batch.partial(problem.hidden, problem.weight, problem.bias)
    assert np.isfinite(parts[0][2])  # the labels of the other examples
    assert parts[2][2] == parts[3][2] == 0
    problem.labels[:] = -1
    batch = problem.sample(mode="sampled", negatives=0, allow_unlabelled=True)
    parts = batch.partial(problem.hidden, problem.weight, problem.bias)
    assert [part[2] for part in parts] == [-np.inf, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["lsh", "sampled", "full"])
@pytest.mark.parametrize("kind", [Adam, SGD])
def test_a_fused_update_equals_gradients_and_a_step(kind, mode, dtype):
    results = []
    for fused in (False, True):
        problem = Problem(neurons=200, dtype=dtype)
        weight, bias = (torch.nn.Parameter(x) for x in (problem.weight, problem.bias))
        optimizer = kind([weight, bias], lr=0.1)
        updates = RowUpdates(optimizer)
        for step in range(4):
            batch = problem.sample(mode=mode, step=step)
            problem.weight, problem.bias = weight.detach(), bias.detach()
            bound = updates.bound(weight), updates.bound(bias)
            batch.catch_up(*bound)
            if fused:
                log_prob = batch.forward(problem.hidden, problem.weight, problem.bias)
                grad_hidden = torch.empty_like(problem.hidden)
                batch.backward_update(
                    problem.hidden, problem.weight, problem.scale, grad_hidden, *bound
                )
            else:
                log_prob, grad_hidden, *grads = problem.run(batch)
                ids = torch.from_numpy(batch.rows)
                for optimizer_rows, grad in zip(bound, grads, strict=True):
                    grad = grad[ids].reshape(len(ids), -1).contiguous()
                    optimizer_rows.step(ids, grad)
            optimizer.step()
        optimizer.flush()
        results.append((torch.as_tensor(log_prob), grad_hidden, weight.detach(), bias.detach()))
    for alone, together in zip(*results, strict=True):
        assert torch.equal(alone, together)


@pytest.mark.parametrize("mode", ["lsh", "sampled", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_bad_activations_give_a_bad_loss_for_their_example_alone(mode, dtype, value):
    problem = Problem(dtype=dtype)
    clean = problem.run(problem.sample(mode=mode))[0]
    problem.hidden[4, 2] = value
    log_prob = problem.run(problem.sample(mode=mode))[0]
    others = torch.arange(len(clean)) != 4
    assert torch.allclose(log_prob[others], clean[others])
    if value != 3e38:
        assert not log_prob[4].isfinite()


def test_an_empty_batch_is_no_trouble():
    problem = Problem()
    problem.hidden, problem.labels, problem.scale = (
        x[:0] for x in (problem.hidden, problem.labels, problem.scale)
    )
    log_prob, grad_hidden, grad_weight, _ = problem.run(problem.sample())
    assert log_prob.shape == (0,)
    assert grad_hidden.shape == (0, 19)
    assert not grad_weight.any()


def worst_difference(found, expected):
    """The largest relative error of a step's results, in the norm of each."""
    return max((x - y).norm() / y.norm() for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_async_accumulation_is_close(threads):
    problem = Problem(examples=60, neurons=3000)
    expected = problem.run(problem.sample())

    def difference():
        batch = problem.sample(threads=threads, accumulation="async")
        return worst_difference(problem.run(batch), expected)

    # A thread that the system stops between a load and its store undoes what the other has added
    # meanwhile: that is rare, while a wrong sum is wrong in every step.
    assert min(difference() for _ in range(5)) <= 0.05


def test_the_parts_of_a_step_are_reported():
    problem = Problem()
    batch = problem.sample()
    problem.run(batch)
    stats = batch.stats
    assert stats["rows"] == len(batch.rows)
    assert stats["pairs"] == sum(map(len, batch.own))
    assert stats["shared"] == len(batch.shared)
    assert all(stats[f"{part}_ms"] > 0 for part in ("sample", "own", "shared", "hidden", "rows"))


def test_order_of_calls_and_shapes_are_checked():
    problem = Problem()
    batch = problem.sample()
    with pytest.raises(DataError, match="forward"):
        problem.backward(batch)
    with pytest.raises(DataError, match="partial"):
        batch.finish(problem.scale, problem.labels[:, 0].contiguous())
    with pytest.raises(DataError, match="weight"):
        batch.forward(problem.hidden, problem.weight.double(), None)
    with pytest.raises(DataError, match="mode"):
        problem.sample(mode="dense")
    parameter = torch.nn.Parameter(problem.weight[:80])
    optimizer = Adam([parameter])
    other = RowUpdates(optimizer).bound(parameter)
    with pytest.raises(DataError, match="another shape"):
        batch.catch_up(other, None)
