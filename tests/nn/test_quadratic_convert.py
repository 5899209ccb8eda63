"""Conversion of first-order layers, with and without keeping what they compute."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import qcompile
from qcompile.config import FORMS
from qcompile.errors import ConfigurationError
from qcompile.nn import PRESERVING_FORMS, QuadraticConv2d, QuadraticLinear, from_first_order

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def inputs_of(layer: nn.Module) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return torch.randn(3, 2, layer.in_features)
    dims = len(layer.kernel_size)
    return torch.randn(2, layer.in_channels, *[9, 8, 7][:dims])


def layers() -> list[nn.Module]:
    convolutions = [
        kind(4, 6, 3, padding=padding, groups=groups, padding_mode=mode, bias=bias)
        for kind in KINDS.values()
        for padding, groups in ((0, 1), (1, 2), ("same", 2), ("valid", 1))
        for mode, bias in (
            ("zeros", True),
            ("reflect", False),
            ("replicate", True),
            ("circular", True),
        )
    ]
    uneven = nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 3), groups=4)
    even = [nn.Conv2d(4, 4, 2, padding="same", padding_mode=m) for m in ("zeros", "reflect")]
    return [nn.Linear(5, 7), nn.Linear(5, 7, bias=False), uneven, *even, *convolutions]


def test_the_forms_that_preserve():
    assert PRESERVING_FORMS == ("T1L", "T4", "T2_4", "Quadra")


@pytest.mark.parametrize("init", ["preserve", "auto"])
@pytest.mark.parametrize("form", PRESERVING_FORMS)
def test_preservation_is_exact(form, init):
    for layer in layers():
        x = inputs_of(layer)
        converted = from_first_order(layer, qcompile.Quadratic(form, init=init)).eval()
        assert torch.equal(converted(x), layer(x)), layer
        assert torch.equal(converted(x[0]), layer(x[0])), layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("form", PRESERVING_FORMS)
def test_preservation_is_exact_in_every_type(form, dtype):
    for layer in (nn.Linear(5, 7, dtype=dtype), nn.Conv2d(4, 6, 3, padding=1, dtype=dtype)):
        x = inputs_of(layer).to(dtype)
        converted = from_first_order(layer, qcompile.Quadratic(form))
        assert converted(x).dtype == dtype
        assert torch.equal(converted(x), layer(x))


@pytest.mark.parametrize("form", PRESERVING_FORMS)
def test_preserved_parameters_are_the_same_objects(form):
    layer = nn.Linear(5, 7)
    converted = from_first_order(layer, qcompile.Quadratic(form))
    letter = converted.formula.keeps
    assert getattr(converted, f"weight_{letter}") is layer.weight
    assert getattr(converted, f"bias_{letter}") is layer.bias
    names = [name for name, _ in converted.named_parameters()]
    fresh = [name for name, _ in QuadraticLinear(5, 7, form=form).named_parameters()]
    assert names == fresh


@pytest.mark.parametrize("form", PRESERVING_FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_reach_every_product_after_preservation(form, bias):
    layer = from_first_order(nn.Linear(5, 7, bias=bias), qcompile.Quadratic(form))
    layer(torch.randn(16, 5)).pow(2).sum().backward()
    reached = {
        name.removeprefix("weight_")
        for name, parameter in layer.named_parameters()
        if name.startswith("weight") and parameter.grad.abs().sum() > 0
    }
    assert layer.formula.keeps in reached
    if layer.formula.factors:
        assert reached & set(layer.formula.factors)
    # A second step reaches every weight: none is stuck at a zero that multiplies its own gradient.
    torch.optim.SGD(layer.parameters(), lr=1e-3).step()
    layer.zero_grad()
    layer(torch.randn(16, 5)).pow(2).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize("form", ["T4", "T2_4"])
def test_relinear_has_the_bias_of_the_gate_without_any_other(form):
    layer = from_first_order(nn.Linear(5, 7, bias=False), qcompile.Quadratic(form))
    assert [n for n, _ in layer.named_parameters() if n.startswith("bias")] == ["bias_b"]
    again = QuadraticLinear(5, 7, layer.biases, form)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize("form", [f for f in FORMS if f not in PRESERVING_FORMS])
def test_forms_that_cannot_preserve_say_which_can(form):
    with pytest.raises(ConfigurationError, match=r"T1L, T4, T2_4, Quadra.*kaiming"):
        from_first_order(nn.Linear(2, 2), qcompile.Quadratic(form, init="preserve"))
    fresh = from_first_order(nn.Linear(2, 3, bias=False), qcompile.Quadratic(form))
    assert fresh(torch.randn(1, 2)).shape == (1, 3)
    assert fresh.biases is False


@pytest.mark.parametrize("form", FORMS)
def test_fresh_weights_ignore_the_old_ones(form):
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="reflect")
    config = qcompile.Quadratic(form, init="kaiming")
    torch.manual_seed(3)
    converted = from_first_order(layer, config)
    torch.manual_seed(3)
    expected = QuadraticConv2d(
        4, 6, 3, stride=2, padding=1, groups=2, padding_mode="reflect", form=form
    )
    assert repr(converted) == repr(expected)
    x = inputs_of(layer)
    assert converted(x).shape == layer(x).shape
    shapes = {name: value.shape for name, value in expected.state_dict().items()}
    assert {name: value.shape for name, value in converted.state_dict().items()} == shapes
    assert not any(p is layer.weight or p is layer.bias for p in converted.parameters())
    assert all(torch.isfinite(p).all() for p in converted.parameters())


@pytest.mark.parametrize(("form", "init"), list(itertools.product(FORMS, ["auto", "kaiming"])))
def test_state_of_the_module_carries_over(form, init):
    layer = nn.Conv1d(2, 3, 2, dtype=torch.float64).eval()
    layer.weight.requires_grad_(False)
    converted = from_first_order(layer, qcompile.Quadratic(form, init=init))
    assert not converted.training
    for name, parameter in converted.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.requires_grad == name.startswith("bias"), name


@pytest.mark.parametrize("form", FORMS)
def test_meta_layers_stay_on_meta(form):
    converted = from_first_order(nn.Linear(5, 7, device="meta"), qcompile.Quadratic(form))
    assert all(parameter.is_meta for parameter in converted.parameters())


def test_tied_weights_stay_tied():
    embedding = nn.Embedding(11, 4)
    head = nn.Linear(4, 11)
    head.weight = embedding.weight
    converted = from_first_order(head, qcompile.Quadratic())
    assert converted.weight_c is embedding.weight


def test_subclasses_and_other_layers_are_refused():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    for layer in (Doubled(2, 2), nn.ConvTranspose2d(2, 2, 1), nn.LazyLinear(2), nn.ReLU()):
        with pytest.raises(ConfigurationError, match=f"{type(layer).__name__} cannot become"):
            from_first_order(layer, qcompile.Quadratic())


def test_parametrised_weights_are_refused():
    pruned = nn.Linear(3, 3)
    prune.identity(pruned, "weight")
    with pytest.raises(ConfigurationError, match="remove the parametrisation"):
        from_first_order(pruned, qcompile.Quadratic())
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with pytest.raises(ConfigurationError, match="cannot become quadratic"):
        from_first_order(normed, qcompile.Quadratic())


@pytest.mark.parametrize("form", ["T1", "T1L", "T1_2"])
def test_memory_limit_of_the_configuration_holds(form):
    config = qcompile.Quadratic(form, memory_limit=4 * 100**2 * 3)
    with pytest.raises(ConfigurationError, match="T4, T2_4 or Quadra"):
        from_first_order(nn.Linear(100, 4), config)
    allowed = qcompile.Quadratic(form, memory_limit=4 * (100**2 + 100) * 4)
    assert from_first_order(nn.Linear(100, 4), allowed).weight_a.shape == (4, 100, 100)


def test_infinite_inputs_become_nan_as_documented():
    layer = nn.Linear(2, 2)
    converted = from_first_order(layer, qcompile.Quadratic())
    x = torch.tensor([[float("inf"), 1.0]])
    assert layer(x).isinf().all()
    assert converted(x).isnan().all()
