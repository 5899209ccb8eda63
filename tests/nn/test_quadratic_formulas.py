"""Every form against naive float64 loops written from the formulas, one output at a time."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.config import FORMS
from qcompile.nn import QuadraticConv1d, QuadraticConv2d, QuadraticConv3d, QuadraticLinear
from qcompile.nn.quadratic import bilinear

CONVOLUTIONS = {1: QuadraticConv1d, 2: QuadraticConv2d, 3: QuadraticConv3d}
PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def neuron(form: str, x: np.ndarray, w: dict[str, np.ndarray], bias: dict[str, float]) -> float:
    """Compute one quadratic neuron over the inputs x [n]."""
    a = w["a"] @ x if w["a"].ndim == 1 else x @ w["a"] @ x
    match form:
        case "T1":
            return a + bias["a"]
        case "T1L":
            return a + bias["a"] + w["b"] @ x + bias["b"]
        case "T2":
            return w["a"] @ x**2 + bias["a"]
        case "T3":
            return (a + bias["a"]) ** 2
        case "T4":
            return (a + bias["a"]) * (w["b"] @ x + bias["b"])
        case "T1_2":
            return a + bias["a"] + w["b"] @ x**2 + bias["b"]
        case "T2_4":
            product = (a + bias["a"]) * (w["b"] @ x + bias["b"])
            return product + w["c"] @ x**2 + bias["c"]
        case "Quadra":
            product = (a + bias["a"]) * (w["b"] @ x + bias["b"])
            return product + w["c"] @ x + bias["c"]
    raise AssertionError(form)


def branch_values(layer: torch.nn.Module, output: int) -> tuple[dict, dict]:
    weights, biases = {}, {}
    for name, value in layer.named_parameters():
        kind, letter = name.split("_")
        array = value.detach().numpy()[output]
        if kind == "weight":
            is_matrix = array.ndim == 2 and array.shape == (layer.fan_in, layer.fan_in)
            bilinear_letter = layer.form in ("T1", "T1L", "T1_2") and letter == "a"
            assert is_matrix or not bilinear_letter
            weights[letter] = array if bilinear_letter else array.ravel()
        else:
            biases[letter] = float(array)
    return weights, {letter: biases.get(letter, 0.0) for letter in "abc"}


def naive_linear(layer: QuadraticLinear, x: np.ndarray) -> np.ndarray:
    y = np.empty((*x.shape[:-1], layer.out_features))
    for index in np.ndindex(y.shape):
        y[index] = neuron(layer.form, x[index[:-1]], *branch_values(layer, index[-1]))
    return y


def naive_convolution(layer, x: np.ndarray, options: dict) -> np.ndarray:
    """Convolve x [batch, C, *spatial] by visiting every receptive field."""
    dims, kernel = layer.dims, options["kernel_size"]
    stride, dilation, groups = options["stride"], options["dilation"], options["groups"]
    margins = [(p, p) for p in options["padding"]]
    padded = np.pad(x, [(0, 0), (0, 0), *margins], mode=PAD_MODES[options["padding_mode"]])
    sizes = [
        (padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(dims)
    ]
    y = np.empty((len(x), layer.out_channels, *sizes))
    inputs, outputs = layer.in_channels // groups, layer.out_channels // groups
    for batch, output, *position in np.ndindex(y.shape):
        first = output // outputs * inputs
        field = [
            padded[(batch, channel, *(p * s + t * d for p, s, t, d in zip(*where, strict=True)))]
            for channel in range(first, first + inputs)
            for where in [
                (position, stride, tap, dilation)
                for tap in itertools.product(*(range(k) for k in kernel))
            ]
        ]
        values = branch_values(layer, output)
        y[(batch, output, *position)] = neuron(layer.form, np.array(field), *values)
    return y


def randomise(layer: torch.nn.Module) -> torch.nn.Module:
    """Give biases values too: fresh ones are zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(
    width=st.integers(1, 6),
    outputs=st.integers(1, 8),
    leading=st.lists(st.integers(0, 3), max_size=3),
    bias=st.booleans(),
)
def test_linear_equals_the_formula(form, width, outputs, leading, bias):
    layer = randomise(QuadraticLinear(width, outputs, bias, form, dtype=torch.float64))
    x = torch.randn(*leading, width, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (*leading, outputs)
    np.testing.assert_allclose(y.detach().numpy(), naive_linear(layer, x.numpy()), rtol=1e-10)


@st.composite
def convolutions(draw, dims: int) -> dict:
    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    return {
        "groups": draw(st.sampled_from([1, 1, 2])),
        "kernel_size": each(1, 3 if dims < 3 else 2),
        "stride": each(1, 2),
        "dilation": each(1, 2),
        "padding": each(0, 2),
        "padding_mode": draw(st.sampled_from(sorted(PAD_MODES))),
        "bias": draw(st.booleans()),
    }


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_convolution_equals_the_formula(form, dims, data):
    options = data.draw(convolutions(dims))
    inputs = options["groups"] * data.draw(st.integers(1, 2))
    outputs = options["groups"] * data.draw(st.integers(1, 3))
    layer = CONVOLUTIONS[dims](inputs, outputs, form=form, dtype=torch.float64, **options)
    randomise(layer)
    # Reflection needs an input larger than its margin; 5 taps is the longest kernel.
    spatial = [data.draw(st.integers(5, 6 if dims < 3 else 5)) for _ in range(dims)]
    x = torch.randn(2 if dims < 3 else 1, inputs, *spatial, dtype=torch.float64)
    expected = naive_convolution(layer, x.numpy(), options)
    y = layer(x)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    # One sample without a batch dimension is as good.
    torch.testing.assert_close(layer(x[0]), y[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (2, 2), (3, 2), (4, 1)])
def test_named_padding_equals_explicit_padding(form, dims, kernel, dilation):
    layers = [
        CONVOLUTIONS[dims](2, 3, kernel, padding=padding, dilation=dilation, form=form).double()
        for padding in ("same", "valid", 0)
    ]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 2, *[7, 6, 5][:dims], dtype=torch.float64)
    # torch puts the odd element of the margin after the last input.
    low = dilation * (kernel - 1) // 2
    high = dilation * (kernel - 1) - low
    widened = torch.nn.functional.pad(x, [low, high] * dims)
    same, valid, explicit = (layer(x) for layer in layers)
    assert same.shape[2:] == x.shape[2:]
    torch.testing.assert_close(same, layers[2](widened))
    torch.testing.assert_close(valid, explicit, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outputs", [2, 5])
def test_linear_gradients(form, outputs):
    # T1 contracts one way for more outputs than inputs and the other way for fewer.
    layer = randomise(QuadraticLinear(3, outputs, form=form, dtype=torch.float64))
    check_gradients(layer, torch.randn(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolution_gradients(form, dims):
    kernel = (2, 2, 1)[:dims]
    layer = CONVOLUTIONS[dims](
        2, 4, kernel, stride=2, padding=1, groups=2, padding_mode="circular", form=form
    )
    randomise(layer.double())
    check_gradients(layer, torch.randn(1, 2, *[4, 3, 2][:dims], dtype=torch.float64))


def check_gradients(layer: torch.nn.Module, x: torch.Tensor) -> None:
    names = [name for name, _ in layer.named_parameters()]

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = (x.requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    # Along random directions: element by element it takes minutes for the larger layers.
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("outputs", [2, 5])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, outputs):
    layer = randomise(QuadraticLinear(3, outputs, form="T1", dtype=torch.float64))
    conv = randomise(QuadraticConv2d(2, 2 * outputs, 2, groups=2, form="T1", dtype=torch.float64))
    cases = [(layer, torch.randn(5, 7, 3).double()), (conv, torch.randn(3, 2, 5, 4).double())]
    for module, x in cases:
        x.requires_grad_()
        leaves = (x, *module.parameters())
        whole = module(x)
        wanted = torch.autograd.grad(whole.pow(2).sum(), leaves)
        monkeypatch.setattr(bilinear, "CHUNK_BYTES", 800)
        pieces = module(x)
        got = torch.autograd.grad(pieces.pow(2).sum(), leaves)
        with torch.no_grad():
            torch.testing.assert_close(module(x), whole)
        monkeypatch.undo()
        torch.testing.assert_close(pieces, whole)
        torch.testing.assert_close(got, wanted)


def test_chunks_bound_the_saved_memory(monkeypatch):
    layer = QuadraticLinear(32, 32, form="T1")
    monkeypatch.setattr(bilinear, "CHUNK_BYTES", 1 << 16)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(512, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    # Without recomputation the 512 · 32 · 32 products alone would take 2 MiB.
    assert sum(saved.values()) <= x.nbytes + layer.weight_a.nbytes
