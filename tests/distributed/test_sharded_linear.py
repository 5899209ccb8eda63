import numpy as np
import pytest
import torch
from torch import nn

from qcompile import LSH
from qcompile.distributed import Partition, ShardedLSHLinear
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import LSHLinear

D, N = 13, 101
FULL = LSH(mode="full")


def problem(examples, classes=N, width=D, seed=1):
    """A linear layer, hidden activations and labels, the same wherever it is called."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, classes)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(classes, width, generator=generator))
        linear.bias.copy_(torch.randn(classes, generator=generator))
    hidden = torch.randn(examples, width, generator=generator)
    labels = torch.randint(0, classes, (examples, 3), generator=generator)
    labels[:, 2] = labels[:, 0]  # a repetition counts once
    labels[::2, 1] = -1
    return linear, hidden, labels


def reference(linear, hidden, labels):
    """The dense softmax in float64: log-probabilities, and the gradients of minus their mean."""
    weight, bias, hidden = (
        x.detach().double().requires_grad_() for x in (linear.weight, linear.bias, hidden)
    )
    log_prob = torch.log_softmax(hidden @ weight.T + bias, dim=1)
    output = torch.stack(
        [log_prob[e, sorted(set(row.tolist()) - {-1})].mean() for e, row in enumerate(labels)]
    )
    (-output.mean()).backward()
    return output.detach(), hidden.grad, weight.grad, bias.grad


def own_part(counts, rank):
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def trained_once(group, config, counts, use_loss):
    linear, hidden, labels = problem(sum(counts))
    layer = ShardedLSHLinear.from_linear(linear, config, group).train()
    part = own_part(counts, group.rank)
    own = hidden[part].clone().requires_grad_()
    output, loss = layer(own, labels[part])
    (loss if use_loss else -output.sum() / sum(counts)).backward()
    layer.bias.grad, layer.weight.grad = layer.bias.grad.to_dense(), layer.weight.grad.to_dense()
    return output.detach(), loss.item(), own.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize(
    ("counts", "config", "use_loss"),
    [
        ([6], FULL, True),
        ([5, 3], FULL, True),
        ([4, 0, 2], FULL, True),
        ([2, 3], FULL, False),
        ([3, 4], LSH(active=N, tables=5, hashes=2), True),
    ],
)
def test_loss_and_gradients_are_those_of_the_dense_softmax(spawn, counts, config, use_loss):
    results = spawn(len(counts), trained_once, config, counts, use_loss)
    output, hidden, weight, bias = reference(*problem(sum(counts)))
    losses = {result[1] for result in results}
    assert len(losses) == 1
    np.testing.assert_allclose(losses.pop(), -output.mean(), rtol=1e-5)
    for which, expected in ((0, output), (2, hidden), (3, weight), (4, bias)):
        found = torch.cat([result[which] for result in results]).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def three_steps(group, config, sharded):
    torch.manual_seed(4)
    layer = (
        ShardedLSHLinear(D, N, config=config, group=group)
        if sharded
        else LSHLinear(D, N, config=config)
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    _, hidden, labels = problem(8)
    part = own_part(Partition(8, group.size).sizes, group.rank)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = layer.train()(hidden[part], labels[part]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, layer.weight.detach(), layer.bias.detach()


SPARSE = LSH(active=12, negatives=9, tables=6, hashes=2, bucket=8)


def test_a_lonely_rank_computes_what_an_unsharded_layer_does(spawn):
    (sharded,) = spawn(1, three_steps, SPARSE, True)
    (plain,) = spawn(1, three_steps, SPARSE, False)
    np.testing.assert_allclose(sharded[0], plain[0], rtol=1e-6)
    torch.testing.assert_close(sharded[1:], plain[1:], rtol=1e-5, atol=1e-6)


def test_ranks_are_deterministic_and_begin_as_an_unsharded_layer(spawn):
    first, second = spawn(2, three_steps, SPARSE, True), spawn(2, three_steps, SPARSE, True)
    for (losses, *parameters), (again, *others) in zip(first, second, strict=True):
        assert losses == again == first[0][0]
        assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))


def initial(group):
    torch.manual_seed(5)
    layer = ShardedLSHLinear(D, N, config=FULL, group=group)
    return layer.weight.detach(), layer.bias.detach(), torch.rand(2)


def test_shards_begin_as_the_rows_of_one_layer(spawn):
    shards = spawn(3, initial)
    torch.manual_seed(5)
    whole = LSHLinear(D, N)
    assert torch.equal(torch.cat([weight for weight, _, _ in shards]), whole.weight)
    assert torch.equal(torch.cat([bias for _, bias, _ in shards]), whole.bias)
    assert {tuple(after.tolist()) for _, _, after in shards} == {tuple(torch.rand(2).tolist())}


def normalisers(group, config, steps):
    linear, hidden, labels = problem(4, classes=400)
    layer = ShardedLSHLinear.from_linear(linear, config, group).train()
    part = own_part(Partition(4, group.size).sizes, group.rank)
    logit = (hidden @ linear.weight.T + linear.bias)[part].gather(1, labels[part, :1])[:, 0]
    with torch.no_grad():
        return torch.stack(
            [(logit - layer(hidden[part], labels[part, :1]).output).exp() for _ in range(steps)]
        )


@pytest.mark.parametrize("mode", ["sampled", "lsh"])
def test_the_sum_of_exponentials_is_estimated_without_bias(spawn, mode):
    config = LSH(mode=mode, active=20, negatives=100, tables=8, hashes=2)
    estimates = torch.cat(spawn(2, normalisers, config, 400), dim=1).double()
    linear, hidden, _ = problem(4, classes=400)
    exact = (hidden @ linear.weight.T + linear.bias).double().exp().sum(1)
    error = (estimates.mean(0) - exact) / (estimates.std(0) / 400**0.5)
    assert estimates.std(0).min() > 0
    assert error.abs().max() < 4.5


def evaluated(group, counts, k):
    linear, hidden, labels = problem(sum(counts))
    layer = ShardedLSHLinear.from_linear(linear, FULL, group).eval()
    part = own_part(counts, group.rank)
    output, loss = layer(hidden[part], labels[part])
    scores = layer(hidden[part])
    return output, loss.item(), scores, *layer.top_k(hidden[part], k), layer.predict(hidden[part])


@pytest.mark.parametrize(("counts", "k"), [([5], 4), ([3, 4], 60), ([0, 2, 3], 5)])
def test_evaluation_is_exact(spawn, counts, k):
    results = spawn(len(counts), evaluated, counts, k)
    linear, hidden, labels = problem(sum(counts))
    expected = linear(hidden).detach()
    best = expected.topk(k)
    output = reference(linear, hidden, labels)[0]
    for _, loss, *_ in results:
        np.testing.assert_allclose(loss, -output.mean(), rtol=1e-5)
    close = {"rtol": 1e-5, "atol": 1e-5}
    found = [torch.cat(kind) for kind in zip(*[(r[0], *r[2:]) for r in results], strict=True)]
    torch.testing.assert_close(found[0].double(), output, **close)
    torch.testing.assert_close(found[1], expected, **close)
    torch.testing.assert_close(found[2], best.values, **close)
    assert torch.equal(found[3], best.indices)
    assert torch.equal(found[4], best.indices[:, 0])


def bytes_of_a_step(group, examples, labels):
    layer = ShardedLSHLinear(D, N, config=FULL, group=group)
    hidden = torch.randn(examples, D, requires_grad=True)
    before = group.bytes_sent
    layer(hidden, torch.zeros(examples, labels, dtype=torch.int64)).loss.backward()
    return group.bytes_sent - before


def test_bytes_of_a_step_follow_the_formula_and_no_weights_travel(spawn):
    b, t, ranks = 6, 2, 3
    sent = spawn(ranks, bytes_of_a_step, b, t)
    others = ranks - 1
    activations = others * b * 4 * (D + t)
    gradients = others * b * 4 * D
    statistics = 2 * others * (b * ranks * 4 * (1 + 3)) // ranks
    assert sent == [others * 24 + activations + gradients + statistics] * ranks


def empty(group):
    layer = ShardedLSHLinear(D, N, config=FULL, group=group)
    layer(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))


def test_an_empty_batch_everywhere_is_an_error(spawn):
    for fine, message in spawn.outcomes(2, empty):
        assert not fine
        assert "DataError" in message and "empty batch on every rank" in message


def crowded(group):
    ShardedLSHLinear(D, 2, group=group)


def test_more_ranks_than_classes_is_an_error_on_every_rank(spawn):
    for fine, message in spawn.outcomes(3, crowded):
        assert not fine
        assert message.startswith(ConfigurationError.__name__)


def test_a_label_out_of_range_is_an_error():
    layer = ShardedLSHLinear(D, N, config=FULL)
    with pytest.raises(DataError, match="expected a label from 0 to 100"):
        layer(torch.zeros(1, D), torch.tensor([N]))
