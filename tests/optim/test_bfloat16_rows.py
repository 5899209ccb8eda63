"""Parameters stored as bfloat16 with the rest of a float32 in the optimiser's state."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from qcompile.optim import SGD, Adam, AdamW
from qcompile.runtime import _core

ROWS, DEPTH = 40, 24


def master(parameter, optimizer):
    """Return the float32 weights that parameter and residual make."""
    high = parameter.detach().view(torch.int16).numpy().astype(np.uint16).astype(np.uint32) << 16
    residual = optimizer.state[parameter]["residual"].numpy().astype(np.int32).astype(np.uint32)
    return torch.from_numpy((high + residual).view(np.float32))


def fit(kind, dtype, steps=3000, **options):
    """Minimise a noisy quadratic, a few rows at a step; return its weights and their optimum."""
    optimum = torch.randn(ROWS, DEPTH, generator=torch.Generator().manual_seed(1))
    parameter = nn.Parameter(torch.zeros(ROWS, DEPTH, dtype=dtype))
    optimizer = kind([parameter], **options)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randperm(ROWS, generator=generator)[: 1 + step % 7]
        noise = torch.randn(len(rows), DEPTH, generator=generator)
        values = parameter.detach().float()[rows] - optimum[rows] + 0.3 * noise
        optimizer.param_groups[0]["lr"] = options["lr"] * (1 - step / steps)
        parameter.grad = None
        optimizer.bind(parameter).step(rows, values)
        optimizer.step()
    optimizer.flush()
    weights = master(parameter, optimizer) if dtype == torch.bfloat16 else parameter.detach()
    return weights, optimum


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Adam, {"lr": 1e-2}),
        (AdamW, {"lr": 1e-2, "weight_decay": 1e-2}),
        (SGD, {"lr": 0.05, "momentum": 0.9}),
        (SGD, {"lr": 0.3}),
    ],
)
def test_it_trains_as_well_as_float32(kind, options):
    errors = []
    for dtype in (torch.float32, torch.bfloat16):
        weights, optimum = fit(kind, dtype, **options)
        errors.append((weights - optimum).square().mean().sqrt().item())
    assert errors[1] < 1.1 * errors[0] + 1e-3


def test_steps_far_below_the_spacing_of_bfloat16_add_up():
    parameter = nn.Parameter(torch.ones(4, 8, dtype=torch.bfloat16))
    optimizer = Adam([parameter], lr=1e-5)
    for _ in range(3000):
        optimizer.bind(parameter).step(torch.arange(4), torch.ones(4, 8))
        optimizer.step()
    # Each step moves a weight by its learning rate; near 1 bfloat16 is spaced by 0.004 or 0.008.
    weights = master(parameter, optimizer)
    assert torch.allclose(weights, torch.tensor(0.97), atol=1.5e-3)
    assert weights.mean().item() == pytest.approx(0.97, abs=2e-4)
    assert torch.equal(parameter, master(parameter, optimizer).bfloat16())


@pytest.mark.parametrize("beta2", [0.99, 0.999])
def test_second_moments_decay_though_each_step_is_below_half_a_unit(beta2):
    parameter = nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    optimizer = Adam([parameter], lr=0.0, betas=(0.9, beta2))
    steps = 500
    rows = torch.arange(64)
    for step in range(steps):
        optimizer.bind(parameter).step(rows, torch.full((64, 64), float(step == 0)))
        optimizer.step()
    second = optimizer.state[parameter]["exp_avg_sq"].float()
    assert second.mean().item() == pytest.approx((1 - beta2) * beta2 ** (steps - 1), rel=0.02)


def test_eight_bytes_a_weight():
    parameter = nn.Parameter(torch.zeros(ROWS, DEPTH, dtype=torch.bfloat16))
    optimizer = Adam([parameter])
    optimizer.bind(parameter)
    tensors = [parameter, *optimizer.state[parameter].values()]
    assert sum(t.nbytes for t in tensors if t.dim()) == 8 * parameter.numel()


@pytest.mark.parametrize("kind", [Adam, SGD])
def test_dense_and_sparse_gradients_agree(kind):
    parameters = []
    for dense in (False, True):
        parameter = nn.Parameter(torch.ones(ROWS, DEPTH, dtype=torch.bfloat16))
        optimizer = kind([parameter], lr=0.01)
        for step in range(30):
            gradient = torch.full((ROWS, DEPTH), math.sin(step), dtype=torch.bfloat16)
            parameter.grad = gradient if dense and step else gradient.to_sparse(1)
            optimizer.step()
        parameters.append(parameter.detach())
    assert torch.equal(*parameters)


def test_coupled_weight_decay_and_a_dense_gradient():
    parameter = nn.Parameter(torch.ones(ROWS, DEPTH, dtype=torch.bfloat16))
    exact = nn.Parameter(torch.ones(ROWS, DEPTH, dtype=torch.float64))
    optimizers = Adam([parameter], lr=1e-3), torch.optim.Adam([exact], lr=1e-3)
    for step in range(100):
        for optimizer, each in zip(optimizers, (parameter, exact), strict=True):
            optimizer.param_groups[0]["weight_decay"] = 0.1 * (step > 0)
            each.grad = torch.full_like(each, math.cos(step))
            if step == 0 and each is parameter:
                each.grad = each.grad.to_sparse(1)
            optimizer.step()
    assert torch.allclose(master(parameter, optimizers[0]).double(), exact, atol=2e-3)


def test_state_goes_through_a_dictionary_and_to_torch():
    parameter = nn.Parameter(torch.ones(ROWS, DEPTH, dtype=torch.bfloat16))
    optimizer = Adam([parameter], lr=1e-3)

    def step(optimizer, parameter, index):
        rows = torch.arange(index % 5, ROWS, 5)
        optimizer.bind(parameter).step(rows, torch.full((len(rows), DEPTH), math.sin(index)))
        optimizer.step()

    for index in range(20):
        step(optimizer, parameter, index)
    state = copy.deepcopy(optimizer.state_dict())
    other = nn.Parameter(parameter.detach().clone())
    resumed = Adam([other])
    resumed.load_state_dict(state)
    assert resumed.state[other]["residual"].dtype == torch.int16
    for index in range(20, 40):
        step(optimizer, parameter, index)
        step(resumed, other, index)
    assert torch.equal(parameter, other)
    assert torch.equal(master(parameter, optimizer), master(other, resumed))
    dense = torch.optim.Adam([other])
    dense.load_state_dict(state)
    other.grad = torch.ones_like(other)
    dense.step()
    wide = nn.Parameter(parameter.detach().float())
    narrow_to_wide = Adam([wide])
    narrow_to_wide.load_state_dict(state)
    assert "residual" not in narrow_to_wide.state[wide]
    step(narrow_to_wide, wide, 40)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_threads_do_not_matter(kind):
    results = []
    for threads in (1, 3):
        value = torch.ones(200, 33, dtype=torch.bfloat16)
        residual = torch.zeros(200, 33, dtype=torch.int16)
        first, second = torch.zeros_like(value), torch.zeros_like(value)
        late = _core.RowAdam(200) if kind == "adam" else _core.RowSgd(200)
        for step in range(8):
            if kind == "adam":
                bound = late.bind(value, residual, first, second, 0.01, 0.9, 0.99, 1e-8, 0.1)
            else:
                bound = late.bind(value, residual, first, 0.01, 0.9, 0.1)
            rows = torch.arange(step % 3, 200, 1 + step % 4)
            bound.step(rows, torch.ones(len(rows), 33), threads)
            late.finish_step()
        bound.flush(threads)
        results.append((value, residual, first, second))
    for one, many in zip(*results, strict=True):
        assert torch.equal(one, many)
