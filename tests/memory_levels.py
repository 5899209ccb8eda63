"""Steps of quadratic layers and blocks at the levels of hybrid back-propagation, to compare."""

import copy

import torch
from torch import nn

from qcompile.nn import QuadraticConv1d, QuadraticConv2d, QuadraticConv3d, QuadraticLinear

CONVOLUTIONS = {1: QuadraticConv1d, 2: QuadraticConv2d, 3: QuadraticConv3d}
LEVELS = (1, 3)


def layer(dims, form, dtype=torch.float64, **options):
    if not dims:
        return QuadraticLinear(5, 3, form=form, dtype=dtype, **options)
    options = {"padding": 1, "groups": 2, "padding_mode": "reflect"} | options
    return CONVOLUTIONS[dims](4, 6, 3, form=form, dtype=dtype, **options)


def inputs(dims, dtype=torch.float64):
    return torch.randn(5, *([4, 7, 6, 5][: dims + 1] if dims else [5]), dtype=dtype)


def randomised(module):
    """Scales and offsets that are neither one nor zero."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return module


def step(module, x, *, scale=1.0, context=None):
    """Return output, gradients by name and buffers after forward and backward."""
    module.zero_grad()
    x = x.clone().requires_grad_(x.is_floating_point())
    with context or torch.enable_grad():
        y = module(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    (y * weights * scale).sum().backward()
    gradients = {"x": x.grad} | {name: p.grad for name, p in module.named_parameters()}
    return y.detach(), gradients, dict(module.named_buffers())


def at_level(module, level):
    other = copy.deepcopy(module)
    for part in other.modules():
        if hasattr(part, "memory"):
            part.memory = level
    return other


def agree(module, x, level, rtol=1e-9, **options):
    """Compare two steps with level 0's: same bits forward and in buffers, same gradients."""
    twin = at_level(module, level)
    for _ in range(2):
        expected, right, buffers = step(module, x, **options)
        got, gradients, own = step(twin, x, **options)
        assert torch.equal(got, expected)
        for name, gradient in right.items():
            if gradient is None:
                assert gradients[name] is None, name
            else:
                largest = gradient.abs().max().clamp(min=1).item()
                torch.testing.assert_close(
                    *(gradients[name], gradient), rtol=rtol, atol=rtol * largest, msg=name
                )
        assert own.keys() == buffers.keys()
        for name, buffer in buffers.items():
            assert torch.equal(own[name], buffer), name
