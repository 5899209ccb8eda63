"""Hybrid back-propagation: every level computes, counts and differentiates as level 0 does."""

import copy

import pytest
import torch
from memory_levels import LEVELS, agree, at_level, inputs, layer, randomised
from torch import nn

import qcompile
from qcompile.config import FORMS, NORMS
from qcompile.errors import ConfigurationError
from qcompile.models import qvgg7
from qcompile.nn import (
    QuadraticBlock,
    QuadraticConv2d,
    QuadraticLinear,
)

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch_norm", NORMS)
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_blocks(form, dims, batch_norm, level):
    block = QuadraticBlock(layer(dims, form), batch_norm, nn.ReLU() if dims != 1 else nn.SiLU())
    agree(randomised(block), inputs(dims), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bias", [True, False, "a"])
@pytest.mark.parametrize("dims", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_layers(form, dims, bias, level):
    module = randomised(layer(dims, form, bias=bias))
    agree(module, inputs(dims), level)
    unbatched = inputs(dims)[0]
    agree(module, unbatched, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "padding_mode": "zeros", "kernel_size": (2, 4)},
        {"padding": "same", "padding_mode": "circular", "kernel_size": (2, 3)},
        {"padding": "same", "padding_mode": "zeros", "dilation": 2, "groups": 4},
        {"padding": "valid", "padding_mode": "zeros"},
        {"padding": (2, 0), "padding_mode": "zeros", "stride": (2, 1)},
        {"padding": (0, 1), "padding_mode": "replicate", "stride": 3},
    ],
)
@pytest.mark.parametrize("form", ["T1L", "T2_4", "Quadra"])
def test_geometries(form, options, level):
    options = {"padding": 1, "groups": 2, "kernel_size": 3} | options
    module = QuadraticConv2d(4, 8, form=form, dtype=torch.float64, **options)
    agree(module, inputs(2), level)
    agree(QuadraticBlock(module, "both", nn.Tanh()), inputs(2), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch_norm", ["branch", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(form, batch_norm, level):
    block = QuadraticBlock(layer(0, form), batch_norm, nn.Softplus(), memory=level)
    block = randomised(block)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    x = inputs(0).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["T1L", "T3", "T2_4", "Quadra"])
def test_gradients_of_gradients(form, level):
    block = randomised(QuadraticBlock(layer(0, form), "both", nn.Tanh()))
    results = []
    for module in (block, at_level(block, level)):
        x = (inputs(0) if not results else results[0][0]).detach().requires_grad_()
        (first,) = torch.autograd.grad(module(x).pow(2).sum(), x, create_graph=True)
        first.pow(2).sum().backward()
        results.append((x, x.grad, *(p.grad for p in module.parameters())))
    for expected, got in zip(*results, strict=True):
        if expected is not None:
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "activation",
    [
        *(nn.CELU(0.5), nn.ELU(0.7), nn.GELU(), nn.GELU("tanh"), nn.Hardsigmoid(), nn.Hardswish()),
        *(nn.Hardtanh(-0.3, 0.4), nn.LeakyReLU(0.2), nn.LogSigmoid(), nn.Mish(), nn.ReLU6()),
        *(nn.SELU(), nn.Sigmoid(), nn.Softplus(2.0, 1.0), nn.Softsign(), nn.Tanh()),
        *(nn.ReLU(inplace=True), nn.PReLU(6, dtype=torch.float64), nn.Sequential(nn.ReLU()), None),
    ],
    ids=repr,
)
def test_activations(activation, level):
    agree(QuadraticBlock(layer(2, "Quadra"), "branch", activation), inputs(2), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("dims", "activation", "pool"),
    [
        (2, nn.ReLU(), nn.MaxPool2d(2)),
        (2, None, nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True)),
        (2, nn.SiLU(), nn.MaxPool2d(2, dilation=2)),
        (3, nn.Tanh(), nn.MaxPool3d(2, stride=1)),
        (1, nn.ReLU(), nn.MaxPool1d(2)),
        (2, nn.PReLU(dtype=torch.float64), nn.MaxPool2d(2)),
        (2, nn.ReLU(), nn.AvgPool2d(2)),
    ],
    ids=repr,
)
def test_poolings(dims, activation, pool, level):
    block = QuadraticBlock(layer(dims, "Quadra"), "both", activation, pool)
    agree(randomised(block), inputs(dims), level)
    agree(QuadraticBlock(layer(dims, "T2"), "none", activation, pool), inputs(dims), level)


NORM_OPTIONS = [
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"eps": 0.1, "momentum": 0.7},
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", NORM_OPTIONS, ids=str)
def test_kinds_of_batch_norm(options, level):
    block = QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU())
    for name in ("norm_a", "norm"):
        setattr(block, name, nn.BatchNorm2d(6, dtype=torch.float64, **options))
    agree(block, inputs(2), level)


@pytest.mark.parametrize("level", LEVELS)
def test_evaluation_mode_and_frozen_batch_norms(level):
    block = randomised(QuadraticBlock(layer(2, "T2_4"), "both", nn.ReLU()))
    with torch.no_grad():
        block(3 * inputs(2) + 1)
    agree(block.eval(), inputs(2), level)
    agree(block.train(), inputs(2), level)
    block.norm_b.eval()
    agree(block, inputs(2), level)


@pytest.mark.parametrize("level", LEVELS)
def test_only_what_is_needed_gets_a_gradient(level):
    block = QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU())
    names = [name for name, _ in block.named_parameters()]
    x = inputs(2)
    for wanted in ([names[0]], [names[1], "norm.weight"], ["norm_c.bias"], names[2:5]):
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(name in wanted)
        agree(block, x, level)
        frozen = at_level(block, level)
        y = frozen(x)  # an input that needs none
        y.sum().backward()
        got = [name for name, p in frozen.named_parameters() if p.grad is not None]
        assert sorted(got) == sorted(wanted)
    block.requires_grad_(False)
    agree(block, x, level)
    assert not at_level(block, level)(x).requires_grad


def test_the_network_trains_to_the_same_weights():
    models = []
    for level in (0, 1, 3):
        torch.manual_seed(3)
        model = qvgg7(4, scale=1 / 16, memory=level).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            x, labels = torch.randn(6, 3, 32, 32).double(), torch.randint(4, (6,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        models.append(model.state_dict())
    for name, expected in models[0].items():
        for other in models[1:]:
            torch.testing.assert_close(other[name], expected)


def test_transform_sets_the_level():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    new = qcompile.transform(model, "Quadra", batch_norm="branch", memory=3)
    assert (new[0].memory, new[3].memory) == (3, 3)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(new(x), model(x))
    with pytest.raises(ConfigurationError, match=r"memory must be .* got 2"):
        qcompile.transform(model, "Quadra", memory=2)


def test_levels_are_checked_shown_and_copied():
    module = QuadraticLinear(3, 4, memory=3)
    assert eval(repr(module)).memory == 3
    assert copy.deepcopy(module).memory == 3
    block = QuadraticBlock(module, memory=1)
    assert "memory=1" in repr(block)
    for wrong in (2, True, "auto", None):
        with pytest.raises(ConfigurationError, match="memory must be 0"):
            block.memory = wrong
    assert block.memory == 1


def test_batch_norms_that_cannot_be_repeated_are_refused():
    block = QuadraticBlock(QuadraticConv2d(3, 4, 3), "outer", memory=3)
    block.norm = nn.GroupNorm(2, 4)
    with pytest.raises(ConfigurationError, match="cannot repeat GroupNorm: set memory=0"):
        block(torch.randn(2, 3, 8, 8))
    block.memory = 0
    assert block(torch.randn(2, 3, 8, 8)).shape == (2, 4, 6, 6)
    single = QuadraticBlock(QuadraticLinear(3, 4), memory=3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        single(torch.randn(1, 3))
