"""The layers as torch modules: saving, copying, devices, types, layouts, tracing, bad input."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qcompile.config import FORMS
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import QuadraticConv1d, QuadraticConv2d, QuadraticConv3d, QuadraticLinear

BILINEAR_FORMS = ("T1", "T1L", "T1_2")


def network(form: str) -> nn.Module:
    return nn.Sequential(
        QuadraticConv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect", form=form),
        nn.ReLU(),
        QuadraticConv2d(4, 6, (3, 1), padding="same", groups=2, bias=False, form=form),
        nn.Flatten(),
        QuadraticLinear(96, 5, form=form),
    )


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 7)


@pytest.mark.parametrize("form", FORMS)
def test_copies_compute_the_same(form, images):
    model = network(form)
    expected = model(images)
    loaded = network(form)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(twin(images), expected)
        assert repr(twin) == repr(model)


@pytest.mark.parametrize("form", FORMS)
def test_fx_traces_through(form, images):
    model = network(form)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(images), model(images))
    assert torch.equal(traced(images[:1]), model(images[:1]))


@pytest.mark.parametrize("form", ["T1L", "T3", "T2_4"])  # every term and way to combine them
def test_compiles_to_one_graph(form, images):
    model = network(form)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("form", FORMS)
def test_meta_device_infers_shapes(form, images):
    with torch.device("meta"):
        model = network(form)
    assert model(images.to("meta")).shape == (2, 5)
    layer = QuadraticLinear(3, 4, form=form, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(1, 3)).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_channels_last(form, images):
    model = network(form)[0]
    expected = model(images)
    layout = torch.channels_last
    got = copy.deepcopy(model).to(memory_format=layout)(images.to(memory_format=layout))
    torch.testing.assert_close(got, expected)
    assert expected.is_contiguous()


@pytest.mark.parametrize("form", FORMS)
def test_autocast_lowers_the_type_and_keeps_gradients(form, images):
    model = network(form)
    full = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = model(images)
    assert lowered.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), full, rtol=0.1, atol=0.05)
    lowered.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_types(form):
    for dtype in (torch.float64, torch.bfloat16):
        layer = QuadraticConv1d(2, 3, 2, form=form, dtype=dtype)
        assert layer(torch.randn(1, 2, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("form", FORMS)
def test_empty_batches(form, images):
    model = network(form)
    assert model(images[:0]).shape == (0, 5)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_unit_inputs_have_the_documented_scale(form):
    has_linear_term = form in ("T1L", "Quadra")
    wanted = 1 / 8 + 1 / 3 if has_linear_term else 1 / 4
    layer = QuadraticLinear(96, 256, form=form)
    assert all(not p.any() for n, p in layer.named_parameters() if n.startswith("bias"))
    measured = layer(torch.randn(512, 96)).pow(2).mean().item()
    assert measured == pytest.approx(wanted, rel=0.3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU])
def test_deep_stacks_do_not_overflow_when_fresh(form, activation):
    width = 24 if form in BILINEAR_FORMS else 64
    stack = [m for _ in range(20) for m in (QuadraticLinear(width, width, form=form), activation())]
    model = nn.Sequential(*stack)
    y = model(torch.randn(64, width))
    y.pow(2).sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 5), (5, 12)])
@pytest.mark.parametrize("form", FORMS)
def test_parameters_and_operations_are_those_documented(form, inputs, outputs):
    full = form in BILINEAR_FORMS
    first_order = {"T1": 0, "T1L": 1, "T1_2": 1, "T4": 2, "T2_4": 3, "Quadra": 3}.get(form, 1)
    branches = full + first_order
    layer = QuadraticLinear(inputs, outputs, form=form)
    weights = outputs * inputs * (full * inputs + first_order)
    assert sum(p.numel() for p in layer.parameters()) == weights + branches * outputs
    second_product = 2 * outputs * inputs if full and outputs <= inputs else 0
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, inputs))
    assert counter.get_total_flops() == 2 * weights + second_product


def test_repr_rebuilds_the_layer():
    layers = [
        QuadraticLinear(3, 4, False, "T2&4"),
        QuadraticLinear(3, 4, "b", "T4"),
        QuadraticConv3d(2, 4, (1, 2, 3), 2, "valid", 3, 2, padding_mode="circular", form="T3"),
    ]
    for layer in layers:
        again = eval(repr(layer))
        assert repr(again) == repr(layer)
        again.load_state_dict(layer.state_dict())


@pytest.mark.parametrize("form", BILINEAR_FORMS)
def test_full_matrices_beyond_the_memory_limit_are_refused(form):
    with pytest.raises(ConfigurationError) as error:
        QuadraticConv2d(512, 512, 3, form=form)
    weights = 512 * (512 * 9) ** 2 + (0 if form == "T1" else 512 * 512 * 9)
    assert f"{weights * 4:,} bytes" in str(error.value)
    assert "memory_limit" in str(error.value)
    assert "T4, T2_4 or Quadra" in str(error.value)
    # Half the bytes a weight: a limit that is just enough.
    count = 4 * 9 + (0 if form == "T1" else 4 * 3)
    options = {"form": form, "dtype": torch.bfloat16}
    QuadraticLinear(3, 4, **options, memory_limit=2 * count)
    with pytest.raises(ConfigurationError):
        QuadraticLinear(3, 4, **options, memory_limit=2 * count - 1)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("quadro", "Quadra"), ("T2_5", "T2_4"), ("t1", "T1"), ("T1&L", "T1L")],
)
def test_unknown_forms_suggest_the_nearest(name, nearest):
    with pytest.raises(ConfigurationError, match=f"Did you mean '{nearest}'"):
        QuadraticLinear(2, 2, form=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 3, "groups": 2}, "multiples of groups"),
        ({"groups": 0}, "multiples of groups"),
        ({"out_channels": 0}, "must be positive"),
        ({"kernel_size": 0}, "kernel_size must be an integer"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be an integer ≥ 1, or 2 of them"),
        ({"stride": (1, 0)}, "stride must be"),
        ({"dilation": 1.5}, "dilation must be"),
        ({"padding": -1}, "padding must be an integer ≥ 0"),
        ({"padding": "sam"}, "Did you mean 'same'"),
        ({"padding": "same", "stride": 2}, "needs stride 1"),
        ({"padding_mode": "replicated"}, "Did you mean 'replicate'"),
        ({"bias": "ad"}, "names others"),
    ],
)
def test_impossible_convolutions_are_refused(options, message):
    usual = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    with pytest.raises(ConfigurationError, match=message):
        QuadraticConv2d(**{**usual, **options})


def test_impossible_linear_layers_are_refused():
    for sizes in ((0, 2), (2, 0), (-1, 2)):
        with pytest.raises(ConfigurationError, match="must be positive"):
            QuadraticLinear(*sizes)


@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_the_wrong_shape_are_refused(form):
    wrong = [
        (QuadraticLinear(3, 4, form=form), torch.randn(2, 5), "5"),
        (QuadraticConv1d(4, 4, 3, groups=2, form=form), torch.randn(2, 6, 8), "6"),
        (QuadraticConv2d(1, 4, 3, form=form), torch.randn(2, 3, 8, 8), "3"),
        (QuadraticConv2d(3, 4, 3, form=form), torch.randn(8, 8), "8"),
        (QuadraticConv2d(3, 4, 3, padding=(1, 0), form=form), torch.randn(1, 3, 9, 2), "2"),
        (QuadraticConv2d(3, 4, 3, dilation=4, form=form), torch.randn(1, 3, 9, 8), "8"),
    ]
    for layer, x, number in wrong:
        with pytest.raises((DataError, RuntimeError), match=number):
            layer(x)
