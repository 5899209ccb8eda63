"""LSHHidden and LSHConv2d: gradients, which neurons are active, training, saving, bad input."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcompile import LSH
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import LSHConv2d, LSHHidden
from qcompile.optim import SGD, Adam

D, H = 13, 90
SMALL = LSH(tables=8, hashes=2, bucket=16, active=12, rehash=3)


def inputs(examples=11, depth=D, seed=0):
    return torch.randn(examples, depth, generator=torch.Generator().manual_seed(seed))


def gradients(output, scale, *tensors):
    return [g.to_dense().double() for g in torch.autograd.grad((output * scale).sum(), tensors)]


@settings(max_examples=25, deadline=None)
@given(
    examples=st.integers(0, 20),
    depth=st.integers(1, 60),
    neurons=st.integers(2, 80),
    active=st.integers(2, 100),
    mode=st.sampled_from(["lsh", "sampled", "full"]),
    bias=st.booleans(),
    sparse_grad=st.booleans(),
)
def test_it_is_a_dense_layer_with_all_but_the_active_neurons_masked(
    examples, depth, neurons, active, mode, bias, sparse_grad
):
    config = LSH(mode=mode, tables=4, hashes=1, active=active)
    layer = LSHHidden(depth, neurons, bias, config=config)
    layer.sparse_grad = sparse_grad
    hidden = inputs(examples, depth).requires_grad_()
    output = layer(hidden)
    mask = output != 0
    expected_active = neurons if mode == "full" else min(active, neurons)
    assert (mask.sum(1) <= expected_active).all()  # a product may be 0, but hardly is
    assert mask.sum() >= 0.9 * expected_active * examples
    scale = torch.randn(examples, neurons)
    parameters = list(layer.parameters())
    found = gradients(output, scale, hidden, *parameters)
    exact = [hidden.detach().double(), *(p.detach().double() for p in parameters)]
    exact = [tensor.requires_grad_() for tensor in exact]
    reference = nn.functional.linear(*exact) * mask
    assert torch.allclose(output.double(), reference, atol=1e-5)
    for value, expected in zip(found, gradients(reference, scale, *exact), strict=True):
        assert torch.allclose(value, expected, atol=1e-4)


@pytest.mark.parametrize("config", [LSH(active=H), LSH(mode="full", active=2)])
def test_with_everything_active_it_is_the_dense_layer(config):
    linear = nn.Linear(D, H)
    layer = LSHHidden.from_linear(linear, config)
    hidden = inputs().requires_grad_()
    scale = torch.randn(11, H)
    assert torch.allclose(layer(hidden), linear(hidden), atol=1e-6)
    found = gradients(layer(hidden), scale, hidden, *linear.parameters())
    expected = gradients(linear(hidden), scale, hidden, *linear.parameters())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_active_neurons_have_larger_products_than_random_ones():
    sums = {}
    for mode in ("lsh", "sampled"):
        torch.manual_seed(0)
        layer = LSHHidden(32, 1000, config=LSH(mode=mode, tables=50, active=40))
        sums[mode] = layer(inputs(64, 32)).relu().sum().item()
    assert sums["lsh"] > 2 * sums["sampled"]


def test_evaluation_computes_all_neurons():
    linear = nn.Linear(D, H)
    layer = LSHHidden.from_linear(linear, SMALL).eval()
    assert torch.equal(layer(inputs()), linear(inputs()))
    assert layer.steps == 0
    half = LSHHidden(D, H, config=SMALL, dtype=torch.bfloat16).eval()
    assert half(inputs()).dtype == torch.float32
    assert layer(inputs(12).view(3, 4, D)).shape == (3, 4, H)
    exported = torch.export.export(layer, (inputs(),))
    assert torch.ops.aten.linear.default in [node.target for node in exported.graph.nodes]


def run(layer, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        hidden = inputs(seed=step)
        optimizer.zero_grad()
        loss = (layer(hidden).relu().sum(1) - hidden.square().sum(1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Adam, SGD])
def test_updates_within_the_backward_pass_equal_separate_ones(kind, dtype):
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = LSHHidden(D, H, config=SMALL, dtype=dtype)
        optimizer = kind(layer.parameters(), lr=1e-3)
        if fused:
            optimizer.step_in_backward(layer)
        losses = run(layer, optimizer, 20)
        results.append((losses, [p.detach().clone() for p in layer.eval().parameters()]))
    exact = dtype == torch.float32
    assert np.allclose(results[0][0], results[1][0], rtol=0 if exact else 0.05)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(a, b, atol=0 if exact else 0.02)


def test_training_learns_does_not_depend_on_threads_and_resumes():
    runs = []
    for threads in (1, 3):
        torch.manual_seed(0)
        layer = LSHHidden(D, H, config=SMALL)
        torch.set_num_threads(threads)
        try:
            optimizer = Adam(layer.parameters(), lr=0.02)
            runs.append(run(layer, optimizer, 40))
        finally:
            torch.set_num_threads(1)
    assert runs[0] == runs[1]
    assert np.mean(runs[0][-5:]) < 0.5 * np.mean(runs[0][:5])
    file = io.BytesIO()
    torch.save([layer.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    layers, state = torch.load(file, weights_only=True)
    resumed = LSHHidden(D, H, config=SMALL)
    resumed.load_state_dict(layers)
    other = Adam(resumed.parameters())
    other.load_state_dict(state)
    copied = copy.deepcopy(layer)
    assert copied.steps == resumed.steps == 40
    assert run(layer, optimizer, 8, 40) == run(resumed, other, 8, 40)


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"padding": (1, 2), "padding_mode": "reflect", "stride": (2, 1), "bias": False},
    {"padding": "valid", "padding_mode": "circular"},
]


def convolution(options, config):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 23, (3, 2), **options).double()
    images = torch.randn(4, 5, 9, 8, dtype=torch.float64, requires_grad=True)
    return conv, LSHConv2d.from_conv(conv, config), images


@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("active", [23, 6])
@pytest.mark.parametrize("mode", ["lsh", "sampled"])
def test_a_convolution_is_dense_but_for_its_inactive_filters(options, active, mode):
    conv, layer, images = convolution(options, LSH(mode=mode, tables=4, hashes=1, active=active))
    output = layer(images)
    mask = (output != 0).any(dim=(2, 3))
    assert mask.sum(1).tolist() == [active] * 4
    scale = torch.randn_like(output)
    masked = conv(images) * mask[:, :, None, None]
    assert torch.allclose(output, masked)
    tensors = images, *conv.parameters()
    found = gradients(output, scale, *tensors)
    for value, expected in zip(found, gradients(masked, scale, *tensors), strict=True):
        assert torch.allclose(value, expected)
    layer.eval()
    assert torch.equal(layer(images), conv(images))


def test_active_filters_respond_more_than_random_ones():
    sums = {}
    for mode in ("lsh", "sampled"):
        torch.manual_seed(0)
        layer = LSHConv2d(8, 500, 3, bias=False, config=LSH(mode=mode, tables=50, active=25))
        images = torch.randn(16, 8, 6, 6) + torch.randn(16, 8, 1, 1)
        sums[mode] = layer(images).mean(dim=(2, 3)).relu().sum().item()
    assert sums["lsh"] > 2 * sums["sampled"]


def test_a_convolution_trains_with_any_optimiser_and_resumes():
    def train(layer, optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (layer(images).relu().mean(dim=(1, 2, 3)) - wanted).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(0)
    images, wanted = torch.randn(6, 3, 8, 8), torch.tensor(0.5)
    layer = LSHConv2d(3, 40, 3, padding=1, config=SMALL)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.03)
    losses = train(layer, optimizer, 30)
    assert np.mean(losses[-5:]) < 0.3 * losses[0]
    assert (layer.steps, layer.rehashes > 2) == (30, True)
    resumed = LSHConv2d(3, 40, 3, padding=1, config=SMALL)
    resumed.load_state_dict(layer.state_dict())
    other = torch.optim.AdamW(resumed.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(layer, optimizer, 5) == train(resumed, other, 5)
    plain = nn.Conv2d(3, 40, 3, padding=1)
    layer.load_state_dict(plain.state_dict())
    assert layer(images[0]).shape == (40, 8, 8)


def test_bad_layers_and_inputs_are_refused():
    with pytest.raises(ConfigurationError, match="active must be at least 2"):
        LSHHidden(D, H, config=LSH(active=1))
    with pytest.raises(ConfigurationError, match="active must be at least 2"):
        LSHConv2d(3, 8, 3, config=LSH(active=1))
    with pytest.raises(ConfigurationError, match="2 groups"):
        LSHConv2d(4, 8, 3, groups=2)
    with pytest.raises(DataError, match="LSHHidden: hidden has shape"):
        LSHHidden(D, H)(inputs(depth=D + 1))
    with pytest.raises(DataError, match="LSHHidden: weight has dtype"):
        LSHHidden(D, H).double()(inputs())
    with pytest.raises(DataError, match="is on meta"):
        LSHConv2d(3, 8, 3, device="meta")(torch.randn(1, 3, 5, 5))
    with pytest.raises(DataError, match=r"shape \[1, 4, 5, 5\], expected \[B, 3, H, W\]"):
        LSHConv2d(3, 8, 3)(torch.randn(1, 4, 5, 5))
    with pytest.raises(DataError, match="smaller than the filters"):
        LSHConv2d(3, 8, 3)(torch.randn(1, 3, 2, 5))
    assert "active=12" in repr(LSHHidden(D, H, config=SMALL))
    assert "active=12" in repr(LSHConv2d(3, 8, 3, config=SMALL))
