import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import qcompile
from qcompile import ConfigurationError, Quadratic
from qcompile.nn.quadratic import PRESERVING_FORMS, QuadraticConv2d, QuadraticLayer, QuadraticLinear

ALL_FORMS = ("T1", "T1L", "T2", "T3", "T4", "T1_2", "T2_4", "Quadra")


class Small(nn.Module):
    """Convolutions, one of them depth-wise, and a classifier."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=4, stride=2, bias=False),
        )
        self.classifier = nn.Linear(4, 5)
        self.unused = nn.Linear(4, 5)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def entries(model):
    return {entry.name: entry for entry in model.qcompile_report.entries}


def quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qcompile.errors.QCompileWarning)
        return qcompile.transform(*args, **options)


@pytest.mark.parametrize("form", ALL_FORMS)
def test_every_form_replaces_every_called_layer_and_trains(form):
    model = qcompile.transform(Small(), quadratic=form)
    report = model.qcompile_report
    assert [entry.name for entry in report.rewritten] == ["features.0", "features.3", "classifier"]
    word = "preserved" if form in PRESERVING_FORMS else "kaiming (the form cannot preserve)"
    assert {entry.reason for entry in report.rewritten} == {f"{form}, {word}"}
    assert type(model.features[3]) is QuadraticConv2d
    assert type(model.classifier) is QuadraticLinear
    model(IMAGES).sum().backward()
    assert all(p.grad is not None for p in model.classifier.parameters())


@pytest.mark.parametrize("form", PRESERVING_FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_preservation_keeps_the_function_exactly(form, training):
    model = Small().train(training)
    new = qcompile.transform(model, Quadratic(form, init="preserve"))
    assert torch.equal(new(IMAGES), model(IMAGES))
    assert new.training == training
    assert all(module.training == training for module in new.modules())


def test_the_uncalled_layer_is_left_alone():
    model = qcompile.transform(Small().eval(), "T2")
    assert entries(model)["unused"].reason == "the forward, traced in eval mode, never calls it"
    assert type(model.unused) is nn.Linear


def test_weights_names_and_states_of_the_rest_are_kept():
    model = Small().double()
    model.features[1].weight.requires_grad_(False)
    model.features[0].eval()
    new = qcompile.transform(model, Quadratic(where="classifier"))
    kept = {n: p for n, p in model.state_dict().items() if not n.startswith("classifier")}
    after = new.state_dict()
    assert all(torch.equal(after[name], value) for name, value in kept.items())
    assert new.classifier.weight_a.dtype == torch.float64
    assert not new.features[1].weight.requires_grad
    assert [m.training for m in new.modules()] == [m.training for m in model.modules()]
    assert type(new) is Small


def test_frozen_layers_stay_frozen():
    model = Small().requires_grad_(False)
    assert not any(p.requires_grad for p in qcompile.transform(model, "Quadra").parameters())


def test_several_requests_the_first_that_takes_a_layer_decides():
    requests = [Quadratic("T4", where=nn.Conv2d, exclude="*.0"), Quadratic("T2", exclude="cl*")]
    model = qcompile.transform(Small(), requests)
    assert model.features[3].form == "T4"
    assert model.features[0].form == "T2"
    assert entries(model)["classifier"].reason == "excluded by 'cl*'"


def test_a_second_run_changes_nothing_and_says_so():
    once = qcompile.transform(Small(), "Quadra")
    state = copy.deepcopy(once.state_dict())
    twice = qcompile.transform(once, "T2", strict=True)
    report = twice.qcompile_report
    assert not report.modified
    assert report.summary().startswith("0 rewritten: already quadratic (3)")
    assert all(torch.equal(value, state[name]) for name, value in twice.state_dict().items())


def test_a_second_run_by_type_is_no_problem_either():
    once = qcompile.transform(Small(), Quadratic(where=nn.Conv2d))
    twice = qcompile.transform(once, Quadratic(where=nn.Conv2d), strict=True)
    assert not twice.qcompile_report.modified


def test_the_model_itself_may_be_the_layer():
    layer = nn.Linear(3, 4)
    new = qcompile.transform(layer, "Quadra", example_inputs=torch.ones(1, 3))
    assert isinstance(new, QuadraticLinear)
    assert torch.equal(new(torch.ones(1, 3)), layer(torch.ones(1, 3)))
    (entry,) = new.qcompile_report.entries
    assert (entry.name, entry.flops) == ("(the model itself)", (24, 72))


class Shifted(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class Renamed(nn.Linear):
    """A subclass that computes nothing else."""


def obstructed(kind):
    layer = nn.Linear(4, 4)
    if kind == "forward hook":
        layer.register_forward_hook(lambda *_: None)
    elif kind == "backward hook":
        layer.register_full_backward_hook(lambda *_: None)
    elif kind == "weight norm":
        parametrizations.weight_norm(layer)
    elif kind == "old weight norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(layer)
    elif kind == "subclass":
        layer = Shifted(4, 4)
    elif kind == "patched":
        layer.forward = lambda x: x
    elif kind == "lazy":
        layer = nn.LazyLinear(4)
    elif kind == "gradient hook":
        layer.weight.register_hook(lambda gradient: gradient)
    elif kind == "transposed":
        layer = nn.ConvTranspose1d(4, 4, 1)
    elif kind == "eight bits":
        layer = layer.to(torch.float8_e4m3fn)
    return layer


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("forward hook", "it has forward hooks, which would be lost"),
        ("backward hook", "it has backward hooks, which would be lost"),
        ("weight norm", "its weight is parametrised"),
        ("old weight norm", "it has forward pre hooks, which would be lost"),
        ("subclass", "Shifted overrides forward of Linear"),
        ("patched", "its forward was replaced on the instance"),
        ("lazy", "its size is not known yet"),
        ("gradient hook", "a parameter of it has a hook"),
        ("transposed", "ConvTranspose1d has no counterpart"),
        ("eight bits", "its weight is of type torch.float8_e4m3fn"),
    ],
)
def test_layers_that_would_lose_something_are_skipped_with_the_reason(kind, reason):
    layer = obstructed(kind)
    model = nn.Sequential(layer, nn.Linear(4, 4))
    new = qcompile.transform(model, "Quadra", inplace=True)
    assert reason in entries(new)["0"].reason
    assert new[0] is layer
    assert isinstance(new[1], QuadraticLinear)


def test_a_subclass_that_computes_the_same_is_taken():
    model = nn.Sequential(Renamed(3, 4))
    new = qcompile.transform(model, "Quadra")
    assert isinstance(new[0], QuadraticLinear)
    x = torch.randn(2, 3)
    assert torch.equal(new(x), model(x))
    assert type(model[0]) is Renamed


def test_a_shared_module_is_replaced_once_at_every_name():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    new = qcompile.transform(model, Quadratic(where="2.0"))
    assert new[0] is new[2][0]
    assert isinstance(new[0], QuadraticLinear)
    assert len(new.qcompile_report.rewritten) == 1


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def test_preservation_keeps_ties():
    new = qcompile.transform(TiedHead(), "Quadra")
    assert new.head.weight_c is new.embed.weight


def test_a_fresh_start_does_not_break_ties():
    with pytest.warns(qcompile.errors.QCompileWarning, match="0 rewritten"):
        new = qcompile.transform(TiedHead(), "T2")
    assert "break the tie of its weight with embed" in entries(new)["head"].reason
    assert new.head.weight is new.embed.weight


def test_a_weight_that_is_also_read_directly_is_left_alone():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Linear(4, 3)

        def forward(self, x):
            return self.encode(x) @ self.encode.weight

    new = quietly(Autoencoder(), "Quadra")
    assert "also read directly" in entries(new)["encode"].reason
    assert new(torch.ones(1, 4)).shape == (1, 4)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_encoders_in_eval_take_no_fast_path_past_the_new_layers(mask, norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x = torch.randn(2, 5, 8)
    padding = torch.arange(5)[None] >= torch.tensor([[5], [3]]) if mask else None
    new = qcompile.transform(encoder, "Quadra", example_inputs=x)
    assert [e.name for e in new.qcompile_report.rewritten] == [
        f"layers.{i}.linear{j}" for i in range(2) for j in (1, 2)
    ]
    assert "nn.MultiheadAttention" in entries(new)["layers.0.self_attn.out_proj"].reason
    with torch.no_grad():
        before, after = (m(x, src_key_padding_mask=padding) for m in (encoder, new))
    real = ~padding if mask else slice(None)
    torch.testing.assert_close(after[real], before[real], rtol=0, atol=1e-6)
    with torch.no_grad():
        for parameter in new.layers[0].linear1.parameters():
            parameter.add_(1.0)
        changed = new(x, src_key_padding_mask=padding)
    assert (changed[real] - before[real]).abs().max() > 1e-3


def test_an_encoder_inside_a_model_needs_no_example_inputs():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    new = qcompile.transform(nn.Sequential(nn.Linear(4, 8), layer), "Quadra", strict=True)
    assert "traced by torch.fx.symbolic_trace" in new.qcompile_report.notes
    assert isinstance(new[1].linear2, QuadraticLinear)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_that_is_too_large_is_named_and_nothing_changes(inplace):
    model = Small()
    before = dict(model.named_modules())
    request = Quadratic("T1", memory_limit=5000)
    with pytest.raises(
        ConfigurationError, match=r"layer 'features.0' \(Conv2d\): T1 keeps an n by n"
    ):
        qcompile.transform(model, request, inplace=inplace)
    assert dict(model.named_modules()) == before
    assert not any(isinstance(module, QuadraticLayer) for module in model.modules())


def test_preserving_what_cannot_be_preserved_is_an_error():
    with pytest.raises(ConfigurationError, match=r"layer 'features.0'.*T2 cannot compute"):
        qcompile.transform(Small(), Quadratic("T2", init="preserve"))


def test_selectors_that_match_nothing_are_loud():
    with pytest.warns(qcompile.errors.QCompileWarning, match=r"where='feature\.\*' matches no"):
        new = qcompile.transform(Small(), Quadratic(where=["feature.*", "classifier"]))
    assert len(new.qcompile_report.rewritten) == 1
    with pytest.raises(qcompile.PassError, match=r"where='features' matches no layer: it names"):
        qcompile.transform(Small(), Quadratic(where="features"), strict=True)
    with pytest.raises(qcompile.PassError, match="0 rewritten: nothing of a matching type"):
        qcompile.transform(nn.Sequential(nn.ReLU()), "Quadra", strict=True)


def test_parameters_and_operations_are_counted():
    new = qcompile.transform(Small(), "Quadra", example_inputs=IMAGES)
    entry = entries(new)["features.0"]
    assert entry.parameters == (4 * 3 * 9 + 4, 3 * (4 * 3 * 9 + 4))
    products = 2 * 4 * 6 * 6 * 3 * 9
    assert entry.flops == (2 * products, 6 * products)
    assert entries(new)["unused"].flops == (0, 0)
    assert entries(qcompile.transform(Small(), "Quadra"))["features.0"].flops == (None, None)
