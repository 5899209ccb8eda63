"""Blocks: the formula with batch norms, conversion of layers that have one, bad input."""

import copy

import pytest
import torch
from torch import nn

import qcompile
from qcompile.config import FORMS, NORMS
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import (
    PRESERVING_FORMS,
    QuadraticBlock,
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticConv3d,
    QuadraticLinear,
    block_from_first_order,
)

CONVOLUTIONS = {1: QuadraticConv1d, 2: QuadraticConv2d, 3: QuadraticConv3d}
FIRST_ORDER = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def quadratic(dims, form, **options):
    """A layer over so many spatial dimensions; 0 is a linear one."""
    if not dims:
        return QuadraticLinear(5, 3, form=form, dtype=torch.float64, **options)
    options |= {"stride": 2, "padding": 1, "dtype": torch.float64}
    return CONVOLUTIONS[dims](4, 6, 3, groups=2, form=form, **options)


def inputs(dims):
    return torch.randn(4, *([4, 7, 6, 5][: dims + 1] if dims else [5]), dtype=torch.float64)


def normalised(v, norm):
    if norm is None:
        return v
    over = [0, *range(2, v.dim())]
    mean, variance = v.mean(over, keepdim=True), v.var(over, correction=0, keepdim=True)
    shape = [1, -1, *[1] * (v.dim() - 2)]
    hat = (v - mean) / (variance + norm.eps).sqrt()
    return hat * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize("batch_norm", NORMS)
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_block_computes_its_formula(form, dims, batch_norm):
    block = QuadraticBlock(quadratic(dims, form), batch_norm, nn.Tanh())
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = inputs(dims)
    v = block.layer.branches(x)
    a, b, c = (normalised(v[x], getattr(block, f"norm_{x}")) if x in v else 0 for x in "abc")
    expected = {
        "T1": lambda: a,
        "T1L": lambda: a + b,
        "T2": lambda: a,
        "T3": lambda: a * a,
        "T4": lambda: a * b,
        "T1_2": lambda: a + b,
        "T2_4": lambda: a * b + c,
        "Quadra": lambda: a * b + c,
    }[form]()
    torch.testing.assert_close(block(x), normalised(expected, block.norm).tanh())
    assert block.batch_norm == batch_norm
    assert set(block.branch_norms) == (set(v) if batch_norm in ("branch", "both") else set())


def trained(dims, bias=True, affine=True):
    """A first-order layer with a batch norm that has seen data."""
    torch.manual_seed(1)
    if dims:
        layer = FIRST_ORDER[dims](4, 6, 3, padding=1, groups=2, bias=bias)
    else:
        layer = nn.Linear(5, 3, bias=bias)
    norm = BATCH_NORMS[dims or 1](6 if dims else 3, affine=affine, momentum=0.3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    norm(layer(3 + inputs(dims).float()))
    return layer, norm


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("batch_norm", ["branch", "outer"])
@pytest.mark.parametrize("form", PRESERVING_FORMS)
def test_conversion_preserves_the_bits_in_both_modes(form, batch_norm, dims):
    layer, norm = trained(dims, bias=dims != 2, affine=dims != 3)
    before = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm), nn.ReLU())
    config = qcompile.Quadratic(form, "preserve", batch_norm=batch_norm)
    block = block_from_first_order(layer, norm, nn.ReLU(), config)
    x = inputs(dims).float()
    for training in (True, False):
        assert torch.equal(block.train(training)(x), before.train(training)(x))
    kept = block.norm if batch_norm == "outer" else block.branch_norms[block.layer.formula.keeps]
    assert kept is norm
    for name, value in before[1].state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name


@pytest.mark.parametrize("form", PRESERVING_FORMS)
def test_gradients_reach_every_weight_of_a_preserved_block(form):
    layer, norm = trained(2)
    config = qcompile.Quadratic(form, batch_norm="branch")
    block = block_from_first_order(layer, norm, None, config)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        block(inputs(2).float()).pow(3).sum().backward()
        optimizer.step()
    weights = {n: p for n, p in block.named_parameters() if "bias" not in n}
    assert all(parameter.grad.abs().sum() > 0 for parameter in weights.values())


@pytest.mark.parametrize("form", [form for form in FORMS if form not in PRESERVING_FORMS])
def test_forms_that_cannot_preserve_start_afresh(form):
    layer, norm = trained(2)
    with pytest.raises(ConfigurationError, match=f"{form} cannot compute"):
        config = qcompile.Quadratic(form, "preserve", batch_norm="branch")
        block_from_first_order(layer, norm, None, config)
    config = qcompile.Quadratic(form, batch_norm="branch")
    block = block_from_first_order(layer, norm, None, config)
    for fresh in block.branch_norms.values():
        assert fresh is not norm
        assert fresh.momentum == norm.momentum
        assert not fresh.running_mean.any()


def test_both_preserves_the_branches_and_says_that_it_is_not_all():
    layer, norm = trained(2)
    with pytest.raises(ConfigurationError, match="outer batch norm normalises a second time"):
        block_from_first_order(
            layer, norm, None, qcompile.Quadratic(init="preserve", batch_norm="both")
        )
    norm.eval()
    block = block_from_first_order(layer, norm, None, qcompile.Quadratic(batch_norm="both"))
    block.norm = None
    x = inputs(2).float()
    assert torch.equal(block(x), norm(layer(x)))


def test_frozen_layers_and_modes_carry_over():
    layer, norm = trained(2)
    layer.requires_grad_(False)
    norm.eval()
    block = block_from_first_order(layer, norm, None, qcompile.Quadratic(batch_norm="branch"))
    assert not any(p.requires_grad for p in block.norm_a.parameters())
    assert not any(p.requires_grad for p in block.layer.parameters())
    assert not any(m.training for m in block.branch_norms.values())
    assert block.training


def test_copies_traces_and_compiled_blocks_compute_the_same():
    block = QuadraticBlock(QuadraticConv2d(3, 4, 3, bias=False), "both", nn.ReLU()).eval()
    x = torch.randn(2, 3, 6, 5)
    expected = block(x)
    again = QuadraticBlock(QuadraticConv2d(3, 4, 3, bias=False), "both", nn.ReLU()).eval()
    again.load_state_dict(block.state_dict())
    for twin in (again, copy.deepcopy(block), torch.fx.symbolic_trace(block)):
        assert torch.equal(twin(x), expected)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


def test_a_block_answers_for_its_layer():
    block = QuadraticBlock(QuadraticConv2d(3, 4, 3, stride=2, dtype=torch.float64))
    assert block.weight.dtype == torch.float64
    assert block.stride == (2, 2)
    assert block.out_channels == 4
    assert block.form == "Quadra"
    assert not hasattr(block, "nothing")
    assert "batch_norm='branch'" in repr(block)


def test_inputs_whose_channels_would_be_mistaken_are_refused():
    block = QuadraticBlock(QuadraticLinear(5, 4))
    with pytest.raises(DataError, match=r"expects \[batch, n\], got \(2, 4, 5\)"):
        block(torch.randn(2, 4, 5))
    with pytest.raises(DataError, match="batch, C, 2 dimensions"):
        QuadraticBlock(QuadraticConv2d(3, 4, 1))(torch.randn(3, 4, 4))
    free = QuadraticBlock(QuadraticLinear(5, 4), "none")
    assert free(torch.randn(2, 4, 5)).shape == (2, 4, 4)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="takes a quadratic layer, got Linear"):
        QuadraticBlock(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="Did you mean 'branch'"):
        QuadraticBlock(QuadraticLinear(2, 2), "branches")
    with pytest.raises(ConfigurationError, match="activation must be a module"):
        QuadraticBlock(QuadraticLinear(2, 2), activation=torch.relu)
    with pytest.raises(ConfigurationError, match="cannot have batch_norm='none'"):
        block_from_first_order(*trained(2), None, qcompile.Quadratic())
