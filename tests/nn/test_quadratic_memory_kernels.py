"""Hybrid back-propagation by the C++ kernels: bits of level 0 forward, gradients of float64."""

import copy

import numpy as np
import pytest
import torch
from memory_levels import LEVELS, agree, at_level, inputs, layer, randomised, step
from torch import nn

from qcompile.config import FORMS, NORMS
from qcompile.errors import DataError
from qcompile.nn import QuadraticBlock, QuadraticConv2d, QuadraticLinear
from qcompile.nn.quadratic import cpu
from qcompile.runtime import _core

ACTIVATIONS = [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), None]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Count calls of the kernels; a test whose plan they do not take has to say so."""
    assert cpu.rounds_as_torch()
    counts = {"block_forward": 0, "block_backward_write": 0}
    for name in counts:
        original = getattr(_core, name)

        def counted(*arguments, name=name, original=original):
            counts[name] += 1
            return original(*arguments)

        monkeypatch.setattr(_core, name, counted)
    return counts


def same_bits_and_close_gradients(block, x, level, tolerance=2e-5):
    """Compare with level 0, and gradients with those of float64 at level 0."""
    exact = step(copy.deepcopy(block).double(), x.double())[1]
    twin = at_level(block, level)
    expected, _, buffers = step(block, x)
    got, gradients, own = step(twin, x)
    assert torch.equal(got, expected)
    assert got.stride() == expected.stride()
    for name, buffer in buffers.items():
        assert torch.equal(own[name], buffer), name
    # Gradients of biases before a batch norm are zero but for the rounding of others.
    largest = max(gradient.norm() for gradient in exact.values() if gradient is not None)
    for name, gradient in exact.items():
        if gradient is not None:
            error = (gradients[name].double() - gradient).norm()
            assert error <= tolerance * largest + 1e-20, name


def convolution(form="Quadra", channels=19, **options):
    return QuadraticConv2d(4, channels, 3, padding=1, form=form, bias=False, **options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch_norm", NORMS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_and_batch_norms(form, batch_norm, level, calls):
    module = QuadraticConv2d(4, 5, 3, padding=1, form=form)
    block = randomised(QuadraticBlock(module, batch_norm, nn.ReLU()))
    same_bits_and_close_gradients(block, torch.randn(5, 4, 7, 9), level)
    assert calls == {"block_forward": 1, "block_backward_write": calls["block_backward_write"]}
    assert calls["block_backward_write"] >= 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_activations(activation, level, calls):
    block = randomised(QuadraticBlock(convolution(), "both", activation))
    same_bits_and_close_gradients(block, 2 * torch.randn(3, 4, 6, 5), level)
    large = torch.randn(3, 4, 6, 5) * 1e4  # derivatives where functions have saturated
    same_bits_and_close_gradients(QuadraticBlock(convolution(), "none", activation), large, level)
    assert min(calls.values()) >= 2


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 32), (2, 64)])
@pytest.mark.parametrize("activation", [nn.ReLU(), None], ids=repr)
def test_poolings(activation, size, level, calls):
    block = randomised(QuadraticBlock(convolution(), "both", activation, nn.MaxPool2d(2)))
    same_bits_and_close_gradients(block, torch.randn(3, 4, *size), level)
    assert min(calls.values()) >= 1


@pytest.mark.parametrize("level", LEVELS)
def test_equal_and_undefined_values_are_pooled_as_torch_does(level):
    block = QuadraticBlock(convolution("T2", 3), "none", None, nn.MaxPool2d(2))
    block.layer.weight_a.data.zero_()
    x = torch.randn(2, 4, 4, 4)
    agree(block, x, level, rtol=1e-6)  # all are equal: the first of each four gets the gradient
    with torch.no_grad():
        block.layer.weight_a.fill_(1)
    x[0, 0, 1, 1] = float("nan")
    expected, got = block(x), at_level(block, level)(x.requires_grad_())
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pool", [None, nn.MaxPool2d(2)], ids=repr)
@pytest.mark.parametrize("channels", [5, 16, 35])
def test_channels_last(channels, pool, level, calls):
    block = randomised(QuadraticBlock(convolution(channels=channels), "both", nn.ReLU(), pool))
    block = block.to(memory_format=torch.channels_last)
    x = torch.randn(3, 4, 6, 8).to(memory_format=torch.channels_last)
    same_bits_and_close_gradients(block, x, level)
    assert calls["block_forward"] == 0  # torch's statistics of this layout round otherwise
    assert calls["block_backward_write"] >= 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch_norm", NORMS)
@pytest.mark.parametrize(("batch", "width"), [(2, 1), (1, 40), (33, 16), (70, 3)])
def test_linear_layers(batch, width, batch_norm, level):
    if batch == 1 and batch_norm != "none":
        return  # no statistics of one value
    block = randomised(QuadraticBlock(QuadraticLinear(6, width), batch_norm, nn.Tanh()))
    same_bits_and_close_gradients(block, torch.randn(batch, 6), level, 1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_single_positions_and_images(level):
    block = randomised(QuadraticBlock(convolution(), "both", nn.ReLU()))
    same_bits_and_close_gradients(block, torch.randn(1, 4, 3, 5), level)
    same_bits_and_close_gradients(block, torch.randn(9, 4, 1, 1), level)
    block = randomised(QuadraticBlock(convolution(channels=1), "both", nn.ReLU()))
    same_bits_and_close_gradients(block, torch.randn(3, 4, 4, 5), level)


@pytest.mark.parametrize("level", LEVELS)
def test_evaluation_mode_and_other_statistics(level):
    block = randomised(QuadraticBlock(convolution("T2_4"), "both", nn.ReLU()))
    with torch.no_grad():
        block(3 * torch.randn(5, 4, 6, 6) + 1)
    block.norm_b.eval()
    block.norm_c.track_running_stats = False
    block.norm_a = nn.BatchNorm2d(19, affine=False, eps=0.1, momentum=0.7)
    same_bits_and_close_gradients(block, torch.randn(5, 4, 6, 6), level)
    same_bits_and_close_gradients(block.eval(), torch.randn(5, 4, 6, 6), level)


@pytest.mark.parametrize("level", LEVELS)
def test_a_step_is_the_same_on_any_number_of_threads(level):
    block = at_level(QuadraticBlock(convolution("T2"), "both", nn.SiLU()), level)
    x, before = torch.randn(6, 4, 8, 8), torch.get_num_threads()
    values = torch.randn(6, 19, 8, 8)
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            sums = torch.zeros(2, 2, 19)
            constants = torch.ones(4, 2, 19)
            description = ("none", "silu", ["batch", "none"], 0, 0)
            flat = values.view(6, 19, -1)
            _core.block_backward_sums(flat, [flat], description, constants, sums, threads)
            found.append(sums)
            block(x).sum().backward()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_half_precision_is_computed_in_float32():
    block = QuadraticBlock(layer(2, "Quadra", torch.float32), "both", nn.ReLU())
    x = inputs(2, torch.float32)
    exact = step(block, x)[1]
    for level in LEVELS:
        context = torch.autocast("cpu", dtype=torch.bfloat16)
        gradients = step(at_level(block, level), x, context=context)[1]
        for name, gradient in exact.items():
            if gradient is not None and name.startswith("norm"):
                error = (gradients[name] - gradient).norm()
                assert error <= 0.1 * (1 + gradient.norm()), name


def test_arrays_that_do_not_fit_are_refused():
    value, norms = np.zeros((2, 3, 4), np.float32), ["batch", "none"]
    description = ("none", "relu", norms, 0, 0)
    constants, sums = np.zeros((4, 2, 3), np.float32), np.zeros((2, 2, 3), np.float32)

    def call(grad=value, values=(value,), block=description, fixed=constants, into=sums):
        _core.block_backward_sums(grad, list(values), block, fixed, into)

    call()
    for wrong, message in (
        ({"grad": value[:1].copy()}, "grad: expected the shape"),
        ({"grad": value.astype(np.float64)}, "grad: expected the type"),
        ({"values": ()}, "needs values"),
        ({"values": (value, value[:, :2].copy())}, "values: expected the shape|one array for"),
        (
            {"values": (value.astype(np.int32),), "grad": value.astype(np.int32)},
            "expected the type",
        ),
        ({"block": ("cube", "relu", norms, 0, 0)}, "unknown product"),
        ({"block": ("none", "elu", norms, 0, 0)}, "unknown activation"),
        ({"block": ("none", "relu", ["batch"], 0, 0)}, "one batch norm more"),
        ({"block": ("none", "relu", ["often", "none"], 0, 0)}, "unknown batch norm"),
        ({"block": ("none", "relu", norms, 2, 1)}, "cannot be pooled"),
        ({"block": ("none", "relu", norms, -2, -2)}, "cannot be pooled"),
        ({"block": ("none", "silu", norms, 2, 2)}, "cannot be pooled"),
        ({"fixed": constants[:3].copy()}, "constants: expected the shape"),
        ({"fixed": constants.astype(np.float64)}, "constants and sums"),
        ({"into": sums[:1].copy()}, "sums: expected the shape"),
    ):
        with pytest.raises(DataError, match=message):
            call(**wrong)
    running = np.zeros((2, 2, 3), np.float32)
    with pytest.raises(DataError, match="output: expected the shape"):
        _core.block_forward(
            [value], description, constants, running, [0.1] * 2, [1e-5] * 2, value[:1].copy()
        )
    with pytest.raises(DataError, match="momentum and eps"):
        _core.block_forward([value], description, constants, running, [], [], value.copy())
    with pytest.raises(DataError, match="outputs: expected one"):
        _core.block_backward_write(value, [value], description, constants, sums, [])
