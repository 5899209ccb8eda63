"""States that are exchanged with torch's optimisers, and settings that are refused."""

import copy
import math

import pytest
import torch
from torch import nn

from qcompile.errors import ConfigurationError, DataError
from qcompile.optim import SGD, Adam, AdamW
from qcompile.runtime.memory import huge_pages

PAIRS = {
    "adam": (Adam, torch.optim.Adam, {"lr": 0.01}),
    "adamw": (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "momentum": (SGD, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.01}),
}


def train(optimizer, parameter, steps, start=0):
    sparse = type(optimizer) in (Adam, AdamW, SGD)
    for step in range(start, start + steps):
        gradient = torch.zeros_like(parameter)
        gradient[step % 7] = math.cos(step)
        parameter.grad = gradient.to_sparse(1) if sparse else gradient
        optimizer.step()
    optimizer.state_dict()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("to_torch", [True, False])
def test_they_are_exchanged_with_torch(pair, to_torch):
    ours, theirs, options = PAIRS[pair]
    kinds = (ours, theirs) if to_torch else (theirs, ours)
    parameter = nn.Parameter(torch.ones(10, 4))
    first = kinds[0]([parameter], **options)
    train(first, parameter, 20)
    second = kinds[1]([parameter], lr=1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, parameter, 20, start=20)
    exact = nn.Parameter(torch.ones(10, 4, dtype=torch.float64))
    train(theirs([exact], **options), exact, 40)
    assert torch.allclose(parameter.double(), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "other", "options"),
    [
        (Adam, torch.optim.Adam, {"amsgrad": True}),
        (AdamW, torch.optim.AdamW, {"maximize": True}),
        (SGD, torch.optim.SGD, {"nesterov": True, "momentum": 0.9}),
        (SGD, torch.optim.SGD, {"dampening": 0.5, "momentum": 0.9}),
    ],
)
def test_options_that_we_lack_are_refused(kind, other, options):
    parameter = nn.Parameter(torch.ones(3, 2))
    state = other([parameter], lr=0.1, **options).state_dict()
    optimizer = kind([parameter], lr=0.5)
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        kind([{"params": [parameter], **options}])


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"momentum": -0.1}, {"weight_decay": math.nan}])
def test_settings_of_sgd_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        SGD([nn.Parameter(torch.ones(3, 2))], **wrong)


def test_a_damaged_residual_is_refused():
    parameter = nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    optimizer = Adam([parameter])
    optimizer.bind(parameter).step(torch.tensor([1]), torch.ones(1, 2))
    optimizer.step()
    state = optimizer.state_dict()
    for residual in (torch.zeros(2, 2, dtype=torch.int16), torch.zeros(3, 2)):
        damaged = copy.deepcopy(state)
        damaged["state"][0]["residual"] = residual
        other = Adam([parameter])
        other.load_state_dict(damaged)
        with pytest.raises(DataError, match="residual"):
            other.bind(parameter)


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (1,), (3, 0, 2)])
def test_parameters_of_odd_shapes(shape):
    parameter = nn.Parameter(torch.ones(shape))
    optimizer = AdamW([parameter], lr=0.1)
    for _ in range(3):
        parameter.grad = torch.ones(shape).to_sparse(1)
        optimizer.step()
    optimizer.flush()
    assert torch.isfinite(parameter).all()


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_huge_pages_leave_values_alone(size):
    tensor = torch.arange(size, dtype=torch.float32)[1:]
    assert huge_pages(tensor) is tensor
    assert torch.equal(tensor, torch.arange(1, size, dtype=torch.float32))
