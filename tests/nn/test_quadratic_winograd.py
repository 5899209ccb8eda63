"""Winograd's convolutions: what takes them, and values against float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from memory_levels import LEVELS, at_level, step
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qcompile.errors import DataError
from qcompile.nn import QuadraticBlock, QuadraticConv2d
from qcompile.nn.quadratic import winograd
from qcompile.nn.quadratic.geometry import Geometry
from qcompile.runtime import _core


def geometry(**options):
    given = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    return Geometry.checked(2, **given | {"padding_mode": "zeros"} | options)


def tensors(batch=3, inputs=17, outputs=20, height=9, width=12):
    return torch.randn(batch, inputs, height, width), torch.randn(outputs, inputs, 3, 3)


def close(got, expected):
    assert (got.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("size", [(10, 10), (9, 12), (8, 71), (33, 8)])
def test_values_and_gradients(size, padding):
    plan = geometry(padding=padding)
    x, weight = tensors(height=size[0] + 2, width=size[1] + 2)
    bias = torch.randn(20)
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact = F.conv2d(*wide, padding=padding)
    grad = torch.randn(exact.shape)
    of_x, of_weight, _ = torch.autograd.grad(exact, wide, grad.double())
    assert winograd.takes(plan, x, weight)
    weights, grads = [weight, -2 * weight], [grad, 3 * grad]
    first, second = winograd.convolve(plan, x, weights, [bias, None])
    close(first, exact.detach())
    close(second, -2 * (exact.detach() - wide[2].view(-1, 1, 1)).detach())
    close(winograd.towards_input(plan, [grad], x, [weight], None), of_x)
    total = torch.ones_like(x)
    assert winograd.towards_input(plan, grads, x, weights, total) is total
    close(total, 1 - 5 * of_x)
    found = winograd.towards_weights(plan, grads, x, weights)
    close(found[0], of_weight)
    close(found[1], 3 * of_weight)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": (3, 5)},
        {"stride": 2},
        {"dilation": (1, 2)},
        {"padding": (1, 0)},
        {"padding": 3},
        {"groups": 17},
    ],
    ids=str,
)
def test_other_geometries_are_left_to_torch(options):
    assert not winograd.takes(geometry(**options), *tensors())


def test_other_tensors_are_left_to_torch():
    plan, (x, weight) = geometry(), tensors()
    assert winograd.takes(plan, x, weight)
    assert winograd.takes(geometry(padding="same"), x, weight)
    assert not winograd.takes(None, x, weight)
    assert not winograd.takes(plan, x.double(), weight.double())
    assert not winograd.takes(plan, x.to(memory_format=torch.channels_last), weight)
    assert not winograd.takes(plan, x[:0], weight)
    assert not winograd.takes(plan, *tensors(inputs=4))
    assert not winograd.takes(plan, *tensors(outputs=4))
    assert not winograd.takes(plan, *tensors(height=6))
    with FlopCounterMode(display=False):
        assert not winograd.takes(plan, x, weight)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("form", ["T3", "T4", "T2_4", "Quadra"])
def test_blocks(form, mode, level, monkeypatch):
    layer = QuadraticConv2d(16, 18, 3, padding=1, padding_mode=mode, form=form)
    block = QuadraticBlock(layer, "both", nn.ReLU(), nn.MaxPool2d(2))
    x = torch.randn(3, 16, 10, 8)
    called = []
    for name in ("winograd_forward", "winograd_towards_input", "winograd_towards_weights"):
        original = getattr(_core, name)

        def counted(*arguments, name=name, original=original):
            called.append(name)
            return original(*arguments)

        monkeypatch.setattr(_core, name, counted)
    exact = step(at_level(block, 0).double(), x.double())[1]
    twin = at_level(block, level)
    expected, _, buffers = step(block, x)
    got, gradients, own = step(twin, x)
    assert torch.equal(got, expected)
    assert all(torch.equal(own[name], buffer) for name, buffer in buffers.items())
    assert {"winograd_towards_input", "winograd_towards_weights"} <= {*called}
    assert ("winograd_forward" in called) == (level == 3)
    largest = max(gradient.norm() for gradient in exact.values())
    for name, gradient in exact.items():
        assert (gradients[name].double() - gradient).norm() <= 2e-5 * largest, name


def test_arrays_that_do_not_fit_are_refused():
    x, weight = np.zeros((2, 3, 5, 6), np.float32), np.zeros((4, 3, 3, 3), np.float32)
    sizes = _core.winograd_scratch(3, 4, 5, 6, 1, 1)
    room, scratch = (np.zeros(size, np.float32) for size in sizes)
    y = np.zeros((2, 4, 5, 6), np.float32)
    _core.winograd_forward(x, [weight], 1, room, [y])
    for arguments, message in (
        ((x, [weight[:, :2].copy()], 1, room, [y]), "weight: expected the shape"),
        ((x, [weight, weight[:2].copy()], 1, room, [y, y]), "weight: expected the shape"),
        ((x, [], 1, room, []), "as many weights as outputs"),
        ((x, [weight], 1, room, [y, y]), "as many weights as outputs"),
        ((x[0], [weight], 1, room, [y]), "x: expected the shape"),
        ((x, [weight], 3, room, [y]), "padding: expected 0, 1 or 2"),
        ((x[:, :, :2].copy(), [weight], 0, room, [y]), "output that is not empty"),
        ((x, [weight], 1, room[1:].copy(), [y]), "scratch: expected room"),
        ((x, [weight], 0, room, [y]), "output: expected the shape"),
    ):
        with pytest.raises(DataError, match=message):
            _core.winograd_forward(*arguments)
    with pytest.raises(DataError, match="output: expected the shape"):
        _core.winograd_towards_input([y[:1].copy()], [weight], 1, room, x, False)
    with pytest.raises(DataError, match="scratch: expected room"):
        _core.winograd_towards_weights(x, [y], 1, scratch[1:].copy(), [weight])
