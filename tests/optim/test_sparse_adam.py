"""qcompile.optim.SparseAdam against torch's, in float64."""

import copy

import pytest
import torch
from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.optim import Adam, SparseAdam

ROWS, DEPTH = 24, 19
START = torch.randn(ROWS, DEPTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def gradient_at(step, dtype=torch.float64):
    """A gradient of rows that repeat, in any order; row 23 gets one at step 3 alone."""
    rows = [5, 1 + step % 7, 0, 5] + ([23] if step == 3 else [])
    values = torch.randn(len(rows), DEPTH, generator=torch.Generator().manual_seed(step))
    return torch.sparse_coo_tensor(
        torch.tensor(rows)[None], values.to(dtype), START.shape, check_invariants=True
    )


def train(optimizer, steps, start=0):
    parameter = optimizer.param_groups[0]["params"][0]
    for step in range(start, start + steps):
        parameter.grad = gradient_at(step, parameter.dtype)
        optimizer.step()


def exact(steps, **options):
    parameter = nn.Parameter(START.clone())
    train(torch.optim.SparseAdam([parameter], eps=1e-15, **options), steps)
    return parameter.detach()


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
@pytest.mark.parametrize("steps", [1, 40, 1500])
def test_it_computes_what_torch_does(betas, steps):
    parameter = nn.Parameter(START.float())
    train(SparseAdam([parameter], lr=0.01, betas=betas, eps=1e-15), steps)
    assert torch.allclose(parameter.double(), exact(steps, lr=0.01, betas=betas), atol=2e-5)


def test_bfloat16_rows_follow_float32():
    parameter = nn.Parameter(START.bfloat16())
    train(SparseAdam([parameter], lr=0.01), 300)
    moved = parameter.detach().double() - START
    expected = exact(300, lr=0.01) - START
    # Weights start at bfloat16's precision, and moments are rounded to it at every step.
    assert (moved - expected).abs().mean() < 0.05 * expected.abs().max()


def test_idle_rows_and_their_moments_stay_as_they_are():
    parameter = nn.Parameter(START.float())
    optimizer = SparseAdam([parameter])
    train(optimizer, 10)
    weights = parameter.detach().clone()
    moments = copy.deepcopy(optimizer.state[parameter])
    assert moments["step"] == 10
    train(optimizer, 20, start=10)
    idle = [*range(8, ROWS)]
    assert torch.equal(parameter[idle], weights[idle])
    assert torch.equal(parameter[8:23].double(), START[8:23].float().double())
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[parameter][name][idle], moments[name][idle])
    optimizer.flush()
    assert torch.equal(parameter[idle], weights[idle])


def test_it_goes_on_from_its_own_state():
    parameter, other = nn.Parameter(START.float()), nn.Parameter(START.float())
    optimizer, resumed = SparseAdam([parameter]), SparseAdam([other], lr=1.0)
    train(optimizer, 20)
    with torch.no_grad():
        other.copy_(parameter)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, 20, start=20)
    train(resumed, 20, start=20)
    assert torch.equal(parameter, other)


def test_dense_gradients_take_a_step_of_adam():
    parameter, other = nn.Parameter(START.float()), nn.Parameter(START.float())
    for optimizer in (SparseAdam([parameter]), Adam([other])):
        for step in range(5):
            optimizer.param_groups[0]["params"][0].grad = gradient_at(step).float().to_dense()
            optimizer.step()
    assert torch.equal(parameter, other)


def test_weight_decay_is_refused():
    parameter = nn.Parameter(START.float())
    with pytest.raises(ConfigurationError, match="weight_decay must be 0"):
        SparseAdam([{"params": [parameter], "weight_decay": 0.1}])
