"""Rows that are idle for one to thousands of steps, against torch's dense optimisers in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcompile.optim import SGD, Adam, AdamW

ROWS, DEPTH = 24, 16
START = torch.randn(ROWS, DEPTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
SCHEDULES = {
    "constant": lambda step: 1e-2,
    "cycle": lambda step: 1e-2 * (1.1 + math.cos(step / 37)),
    "warm": lambda step: 1e-2 * min(1.0, step / 50),
}


def touched(step):
    """Rows with a gradient: some always or often, some once in a long while, some once."""
    rows = [0, 1 + step % 7]
    rows += [10, 11] if step % 90 == 3 else []
    rows += [12] if step % 700 == 5 else []
    return rows + {1: [13], 40: [14], 300: [15]}.get(step, [])


def train(
    kind, steps, dtype=torch.float64, sparse=False, scale=1.0, schedule="constant", **options
):
    """Return the weights after training on the same gradients, whatever the kind."""
    parameter = nn.Parameter(START.to(dtype))
    optimizer = kind([parameter], **options)
    for step in range(steps):
        rows = torch.tensor(touched(step))
        values = torch.randn(len(rows), DEPTH, generator=torch.Generator().manual_seed(step))
        gradient = torch.sparse_coo_tensor(
            rows[None], (scale * values).to(dtype), START.shape, check_invariants=True
        )
        parameter.grad = gradient if sparse else gradient.to_dense()
        optimizer.param_groups[0]["lr"] = SCHEDULES[schedule](step)
        optimizer.step()
    if sparse:
        optimizer.flush()
    return parameter.detach().double()


def check(ours, theirs, steps, **options):
    """Compare per row, in terms of what the row moved, with what float32 costs torch itself."""
    exact = train(theirs, steps, **options)
    moved = (exact - START).abs().amax(1).clamp(min=1e-12)
    errors = [
        ((train(kind, steps, torch.float32, sparse, **options) - exact).abs().amax(1) / moved)
        for kind, sparse in ((ours, True), (theirs, False))
    ]
    rounding = 3e-7 / moved  # of weights around 1 that hardly move
    assert (errors[0] <= 2 * errors[1].max() + 2e-5 + rounding).all(), errors


@pytest.mark.parametrize(
    "betas", [(0.9, 0.999), (0.0, 0.99), (0.9, 0.95), (0.95, 0.9), (0.99, 0.999)]
)
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_adam(betas, eps, scale):
    check(Adam, torch.optim.Adam, 400, scale=scale, schedule="cycle", betas=betas, eps=eps)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adam_with_decoupled_decay(schedule):
    check(AdamW, torch.optim.AdamW, 800, schedule=schedule, weight_decay=0.3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd(momentum, weight_decay):
    options = {"momentum": momentum, "weight_decay": weight_decay, "scale": 0.1}
    check(SGD, torch.optim.SGD, 500, schedule="cycle", **options)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (AdamW, torch.optim.AdamW, {"eps": 1e-5, "weight_decay": 0.05}),
        (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-3, "scale": 0.1}),
    ],
)
def test_thousands_of_steps(ours, theirs, options):
    check(ours, theirs, 3000, schedule="cycle", **options)


@settings(max_examples=15, deadline=None)
@given(
    beta1=st.floats(0, 0.98),
    beta2=st.floats(0.5, 0.9999),
    eps=st.sampled_from([1e-8, 1e-6, 1e-4, 1e-2]),
    weight_decay=st.sampled_from([0.0, 0.01, 1.0]),
    steps=st.integers(1, 120),
)
def test_any_rates_of_adam(beta1, beta2, eps, weight_decay, steps):
    options = {"betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}
    check(AdamW, torch.optim.AdamW, steps, schedule="warm", **options)


@settings(max_examples=10, deadline=None)
@given(
    momentum=st.floats(0, 0.999),
    weight_decay=st.floats(0, 1),
    steps=st.integers(1, 150),
)
def test_any_rates_of_sgd(momentum, weight_decay, steps):
    options = {"momentum": momentum, "weight_decay": weight_decay, "scale": 0.1}
    check(SGD, torch.optim.SGD, steps, schedule="cycle", **options)


@pytest.mark.parametrize("change", [{"eps": 1e-4}, {"betas": (0.5, 0.9)}, {"weight_decay": 0.2}])
def test_rates_that_change_between_steps(change):
    results = []
    for kind, dtype in ((AdamW, torch.float32), (torch.optim.AdamW, torch.float64)):
        parameter = nn.Parameter(START.to(dtype))
        optimizer = kind([parameter], lr=0.01)
        for step in range(60):
            if step == 30:
                optimizer.param_groups[0].update(change)
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[step % 5] = math.sin(step)
            if kind is AdamW:
                parameter.grad = parameter.grad.to_sparse(1)
            optimizer.step()
        optimizer.state_dict()
        results.append(parameter.detach().double())
    assert torch.allclose(*results, atol=2e-6)


def test_momentum_that_comes_and_goes():
    results = []
    for kind, dtype in ((SGD, torch.float32), (torch.optim.SGD, torch.float64)):
        parameter = nn.Parameter(START.to(dtype))
        optimizer = kind([parameter], lr=0.01)
        for step in range(90):
            optimizer.param_groups[0]["momentum"] = 0.9 if 30 <= step < 60 else 0.0
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[step % 5] = math.sin(step)
            if kind is SGD:
                parameter.grad = parameter.grad.to_sparse(1)
            optimizer.step()
        optimizer.state_dict()
        results.append(parameter.detach().double())
    assert torch.allclose(*results, atol=2e-6)
