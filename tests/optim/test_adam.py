"""qcompile.optim.Adam against torch's dense Adam."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from qcompile.errors import ConfigurationError, DataError
from qcompile.optim import Adam, catch_up
from qcompile.runtime import _core

ROWS, DEPTH = 40, 19


def sparse_gradient(rows, values, size):
    return torch.sparse_coo_tensor(torch.tensor(rows)[None], values, size, check_invariants=True)


def touched(step):
    """Rows that get a gradient at a step: some often, some once a long while, some once."""
    rows = [0, 1 + step % 7]
    if step % 90 == 3:
        rows += [20, 21]
    if step == 5:
        rows.append(30)
    return rows


def train(optimizer, parameter, steps, dense, start=0, scale=1.0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        rows = touched(step)
        values = scale * torch.randn(len(rows), *parameter.shape[1:], generator=generator)
        gradient = sparse_gradient(rows, values.to(parameter.dtype), parameter.shape)
        parameter.grad = gradient.to_dense() if dense else gradient
        optimizer.step()


def start(shape=(ROWS, DEPTH), dtype=torch.float32):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype))


@pytest.mark.parametrize("shape", [(ROWS, DEPTH), (ROWS,), (ROWS, 2, 3)])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_idle_rows_end_where_dense_adam_moves_them(shape, betas, scale):
    # With gradients of 1e-8 the epsilon of the denominator is as large as the rest of it, which is
    # where catching up in one step is an approximation.
    tolerance = 2e-4 if scale == 1 else 5e-3
    late, exact = start(shape), start(shape, torch.float64)
    optimizer = Adam([late], lr=0.01, betas=betas)
    train(optimizer, late, 300, dense=False, scale=scale)
    reference = torch.optim.Adam([exact], lr=0.01, betas=betas)
    train(reference, exact, 300, dense=True, scale=scale)
    optimizer.flush()
    moved = (exact - start(shape, torch.float64)).abs().max().item()
    assert (late - exact).abs().max().item() < tolerance * moved + 1e-6


@pytest.mark.parametrize("cycles", [False, True])
def test_idle_rows_see_the_rates_they_missed(cycles):
    late, exact = start(), start(dtype=torch.float64)
    optimizers = Adam([late], lr=0.1), torch.optim.Adam([exact], lr=0.1)
    for dense, (optimizer, parameter) in enumerate(zip(optimizers, (late, exact), strict=True)):
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        if cycles:  # of the learning rate and of the first decay
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=41)
        for step in range(40):
            train(optimizer, parameter, 1, bool(dense), start=step)
            schedule.step()
    optimizers[0].flush()
    assert torch.allclose(late.double(), exact, atol=2e-4)


def test_rows_catch_up_when_touched():
    late, exact = start(), start(dtype=torch.float64)
    optimizers = Adam([late], lr=0.01), torch.optim.Adam([exact], lr=0.01)
    train(optimizers[0], late, 94, dense=False)  # the last step touches rows 20 and 21
    train(optimizers[1], exact, 94, dense=True)
    rows = touched(93)
    assert torch.allclose(late[rows].double(), exact[rows], atol=1e-5)
    assert not torch.allclose(late[30].double(), exact[30], atol=1e-5)


def test_a_history_longer_than_is_kept():
    late, exact = start((3, 2)), start((3, 2), torch.float64)
    optimizers = Adam([late], lr=0.003), torch.optim.Adam([exact], lr=0.003)
    for step in range(2500):
        rows = [0, 1] if step in (0, 1300) else [0]
        for parameter, optimizer in zip((late, exact), optimizers, strict=True):
            values = torch.full((len(rows), 2), 0.5 + (step % 3), dtype=parameter.dtype)
            gradient = sparse_gradient(rows, values, parameter.shape)
            parameter.grad = gradient if parameter is late else gradient.to_dense()
            optimizer.step()
    optimizers[0].flush()
    assert torch.allclose(late.double(), exact, rtol=1e-4, atol=1e-4)


def test_dense_gradients_are_torch_adam():
    ours, theirs = start(), start()
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizers = Adam([ours], **options), torch.optim.Adam([theirs], fused=True, **options)
    for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
        train(optimizer, parameter, 50, dense=True)
    assert torch.equal(ours, theirs)


def test_weight_decay_reaches_rows_without_a_gradient():
    ours, theirs = start(), start()
    train(Adam([ours], lr=0.01, weight_decay=0.1), ours, 30, dense=False)
    train(torch.optim.Adam([theirs], lr=0.01, weight_decay=0.1), theirs, 30, dense=True)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_dense_and_sparse_gradients_may_alternate():
    ours, theirs = start(), start(dtype=torch.float64)
    optimizers = Adam([ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01)
    for block in range(4):
        train(optimizers[0], ours, 15, dense=block % 2 == 1, start=15 * block)
        train(optimizers[1], theirs, 15, dense=True, start=15 * block)
    optimizers[0].flush()
    assert torch.allclose(ours.double(), theirs, atol=2e-5)


def test_repeated_rows_add_up_and_an_embedding_trains():
    ours = nn.Embedding(ROWS, DEPTH, padding_idx=0, sparse=True)
    theirs = copy.deepcopy(ours).double()
    theirs.sparse = False
    optimizers = Adam(ours.parameters(), lr=0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for step in range(20):
        ids = torch.randint(ROWS, (8, 5), generator=torch.Generator().manual_seed(step))
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(ids).sum(1).pow(2).mean().backward()
            optimizer.step()
        optimizers[0].flush()  # the next forward reads rows that this step did not touch
    assert torch.allclose(ours.weight.double(), theirs.weight, atol=1e-5)


@pytest.mark.parametrize("direction", ["to torch", "from torch"])
def test_state_dictionaries_are_exchanged_with_torch(direction):
    before, after = start(), start()
    kinds = (Adam, torch.optim.Adam) if direction == "to torch" else (torch.optim.Adam, Adam)
    first = kinds[0]([before], lr=0.01)
    train(first, before, 20, dense=kinds[0] is not Adam)
    state = first.state_dict()
    after.data.copy_(before.data)
    second = kinds[1]([after], lr=0.5)
    second.load_state_dict(state)
    train(second, after, 20, dense=kinds[1] is not Adam, start=20)
    exact = start(dtype=torch.float64)
    train(torch.optim.Adam([exact], lr=0.01), exact, 40, dense=True)
    second.state_dict()
    assert torch.allclose(after.double(), exact, atol=1e-5)


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_a_resumed_run_equals_the_one_that_went_on(how):
    parameter = start()
    optimizer = Adam([parameter], lr=0.01)
    train(optimizer, parameter, 30, dense=False)
    if how == "state_dict":
        state = copy.deepcopy(optimizer.state_dict())
        other = nn.Parameter(parameter.detach().clone())
        resumed = Adam([other])
        resumed.load_state_dict(state)
    else:
        clone = copy.deepcopy if how == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x))
        resumed = clone(optimizer)
        other = resumed.param_groups[0]["params"][0]
    for each, weights in ((optimizer, parameter), (resumed, other)):
        train(each, weights, 30, dense=False, start=30)
        each.flush()
    assert torch.equal(parameter, other)


def test_flushing_twice_changes_nothing_and_catch_up_finds_the_optimizer():
    parameter = start()
    optimizer = Adam([parameter], lr=0.01)
    train(optimizer, parameter, 20, dense=False)
    late = parameter.detach().clone()
    version = parameter._version
    catch_up([nn.Parameter(torch.zeros(2)), parameter])
    assert parameter._version > version
    flushed = parameter.detach().clone()
    assert not torch.equal(late, flushed)
    optimizer.flush()
    assert torch.equal(parameter, flushed)


def bind(adam, arrays, rate=0.01):
    value, first, second = arrays
    return adam.bind(value, None, first, second, rate, 0.9, 0.999, 1e-8)


def test_threads_do_not_matter():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 300, 2000)
    gradients = rng.standard_normal((2000, 33)).astype(np.float32)
    results = []
    for threads in (1, 2, 5):
        arrays = [np.full((300, 33), fill, np.float32) for fill in (1, 0, 0)]
        adam = _core.RowAdam(300)
        for step in range(5):
            part = slice(400 * step, 400 * (step + 1))
            bind(adam, arrays).step(ids[part], gradients[part], threads)
            adam.finish_step()
        bind(adam, arrays).flush(threads)
        results.append(np.stack(arrays))
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()


def test_closures_frozen_parameters_and_several_groups():
    first, second, idle = start(), start(), start()
    optimizer = Adam([{"params": [first], "lr": 0.1}, {"params": [second, idle]}], lr=0.0)
    before = second.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = (first**2).sum() + (second**2).sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert torch.equal(second, before)
    assert idle not in optimizer.state


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, 0.0)}, {"eps": -1}, {"weight_decay": -1}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        Adam([start()], **wrong)


def test_parameters_without_row_updates_are_refused():
    double = start(dtype=torch.float64)
    with pytest.raises(DataError, match="float64"):
        train(Adam([double]), double, 1, dense=False)
    both = start()
    both.grad = torch.sparse_coo_tensor(
        torch.tensor([[1], [2]]), torch.ones(1), both.shape, check_invariants=True
    )
    with pytest.raises(DataError, match="2 axes"):
        Adam([both]).step()


def test_rows_outside_the_matrix_are_refused_before_anything_changes():
    arrays = [np.zeros((4, 2), np.float32) for _ in range(3)]
    adam = _core.RowAdam(4)
    gradients = np.ones((2, 2), np.float32)
    for wrong in (4, -1):
        with pytest.raises(DataError, match="row"):
            bind(adam, arrays).step(np.array([0, wrong]), gradients)
        with pytest.raises(DataError, match="row"):
            bind(adam, arrays).catch_up(np.array([0, wrong]))
    assert adam.steps == 0
    assert not np.any(arrays)
    with pytest.raises(DataError, match="shape"):
        bind(adam, arrays).step(np.array([0, 1]), np.ones((2, 3), np.float32))
