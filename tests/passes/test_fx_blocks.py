"""Layers and their batch norms become blocks; activations are dropped, or stay with a reason."""

import pytest
import torch
from torch import nn

import qcompile
from qcompile import ConfigurationError, Quadratic
from qcompile.nn import PRESERVING_FORMS, QuadraticBlock, QuadraticConv2d, QuadraticLinear

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """What pre-trained networks are made of: a stem, a residual block, one shared ReLU."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.bn2(self.conv2(y)))
        return self.fc(x.mean((2, 3)))


def trained(model):
    """Give a model batch norms that have seen data."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model(2 * IMAGES + 1)
    return model


def reasons(model):
    return {entry.name: entry.reason for entry in model.qcompile_report.entries}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_norm", ["branch", "outer", "none"])
@pytest.mark.parametrize(
    ("form", "tracer"), [*((form, "fx") for form in PRESERVING_FORMS), ("Quadra", "export")]
)
def test_a_trained_model_keeps_its_function(form, batch_norm, training, tracer, monkeypatch):
    if tracer == "export":
        monkeypatch.setattr("qcompile.passes.fx.tracing._symbolic", None)
    model = trained(Residual()).train(training)
    new = qcompile.transform(model, form, batch_norm=batch_norm, example_inputs=IMAGES)
    assert torch.equal(new(IMAGES), model(IMAGES))
    blocks = [module for module in new.modules() if isinstance(module, QuadraticBlock)]
    assert [block.batch_norm for block in blocks] == [batch_norm] * (3 * (batch_norm != "none"))
    assert type(new.fc) is QuadraticLinear
    twice = qcompile.transform(new, form, batch_norm=batch_norm)
    assert not twice.qcompile_report.modified


def test_the_report_tells_what_became_of_which():
    model = qcompile.transform(Residual(), "Quadra", batch_norm="branch")
    assert reasons(model) == {
        "stem.0": "Quadra block, branch batch norm, preserved",
        "conv1": "Quadra block, branch batch norm, preserved",
        "conv2": "Quadra block, branch batch norm, preserved",
        "fc": "Quadra, preserved; no batch norm follows",
    }
    entry = model.qcompile_report.entries[0]
    assert entry.kind == "Conv2d + BatchNorm2d + ReLU"
    assert entry.parameters == (4 * 27 + 8, 3 * (4 * 27 + 8))
    assert isinstance(model.stem[0].activation, nn.ReLU)
    assert isinstance(model.stem[2], nn.Identity)
    assert model.conv1.activation is None  # the ReLU behind it is called elsewhere, too
    assert isinstance(model.relu, nn.ReLU)


@pytest.mark.parametrize("batch_norm", ["branch", "outer", "both", "none"])
def test_activations_are_dropped_where_nothing_else_calls_them(batch_norm):
    model = qcompile.transform(Residual(), "Quadra", batch_norm=batch_norm, activation="drop")
    assert isinstance(model.stem[2], nn.Identity)
    assert reasons(model)["stem.2"] == "dropped"
    assert isinstance(model.relu, nn.ReLU)
    stays = "the activation 'relu' behind 'conv1' stays: it is also called on other values"
    assert stays in model.qcompile_report.notes
    assert model(IMAGES).shape == (4, 5)


def test_what_is_no_module_of_its_own_is_named():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.norm_a, self.norm_b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            y = torch.relu(self.norm_a(self.a(x)))
            z = self.b(y)
            return self.norm_b(z) + z

    model = qcompile.transform(Functional(), "T4", batch_norm="branch", activation="drop")
    notes = model.qcompile_report.notes
    assert (
        "the activation 'relu' behind 'a' stays: relu is called in code, not as a module" in notes
    )
    assert isinstance(model.a, QuadraticBlock)
    assert reasons(model)["b"].endswith("norm_b stays: more than it reads the output of the layer")
    assert type(model.b) is QuadraticConv2d


class Odd(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.register_forward_hook(print) and m, "it has forward hooks"),
        (lambda m: Odd(4), "Odd is no BatchNorm2d"),
        (lambda m: nn.SyncBatchNorm(4), "SyncBatchNorm is no BatchNorm2d"),
    ],
)
def test_batch_norms_that_cannot_move_stay(change, reason):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model[1] = change(model[1])
    new = qcompile.transform(model, "Quadra", batch_norm="branch")
    assert reasons(new)["0"].startswith(f"Quadra, preserved; 1 stays: {reason}")
    assert type(new[1]) is type(model[1])


def test_a_shared_batch_norm_stays():
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)
    new = qcompile.transform(model, "Quadra", batch_norm="outer")
    assert reasons(new)["0"].endswith("1 stays: it is also called on other values")


def test_without_a_trace_nothing_is_known_to_follow():
    class Untraceable(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    model = Untraceable(nn.Linear(4, 4), nn.BatchNorm1d(4))
    new = qcompile.transform(model, "Quadra", batch_norm="outer")
    assert reasons(new)["0"].endswith("without a trace it is not known what follows")


def test_configurations_decide_layer_by_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    requests = [Quadratic("T4", where="0", batch_norm="outer"), Quadratic(batch_norm="branch")]
    new = qcompile.transform(model, requests)
    assert (new[0].form, new[0].batch_norm) == ("T4", "outer")
    assert (new[2].form, new[2].batch_norm) == ("Quadra", "branch")


def test_wrong_options_are_refused():
    with pytest.raises(ConfigurationError, match="unknown batch_norm 'brunch'"):
        qcompile.transform(Residual(), "Quadra", batch_norm="brunch")
    with pytest.raises(ConfigurationError, match="unknown activation 'remove'"):
        qcompile.transform(Residual(), "Quadra", activation="remove")
    with pytest.raises(ConfigurationError, match="batch_norm: needs quadratic="):
        qcompile.transform(Residual(), sparse_output=True, batch_norm="branch")
    with pytest.raises(ConfigurationError, match=r"layer 'stem.0' .*normalises a second time"):
        qcompile.transform(Residual(), Quadratic(init="preserve"), batch_norm="both")
