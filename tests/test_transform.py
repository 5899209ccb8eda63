import copy

import pytest
import torch
from torch import nn

import qcompile
from qcompile import LSH, ConfigurationError, PassError, Quadratic
from qcompile.nn.quadratic import QuadraticLinear
from qcompile.rewrite import explain


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5))


X = torch.ones(2, 4)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_the_original_is_untouched_by_default():
    model = network()
    state = copy.deepcopy(model.state_dict())
    new = qcompile.transform(model, "Quadra")
    assert new is not model
    assert type(model[0]) is nn.Linear
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    assert same(model.state_dict(), state)
    assert not hasattr(model, "qcompile_report")


def test_in_place_the_same_model_comes_back():
    model = network()
    weight = model[0].weight
    new = qcompile.transform(model, "Quadra", inplace=True)
    assert new is model
    assert new[0].weight_c is weight


def test_the_report_counts_and_reads_well():
    new = qcompile.transform(network(), Quadratic(exclude="3"), example_inputs=X)
    report = new.qcompile_report
    assert report.summary() == "1 rewritten (1 × Quadra, preserved), 1 skipped"
    assert "traced by torch.fx.symbolic_trace" in report.notes
    assert "floating-point operations of one call: 216 before, 408 after" in report.notes
    assert "3  skipped: excluded by '3'" in str(report)
    assert report.to_dict()["entries"][0]["flops"] == (96, 288)


def test_explain_tells_what_transform_would_do_and_changes_nothing():
    model = network()
    modules, kind = dict(model.named_modules()), type(model)
    told = explain(model, "Quadra", LSH(tables=1, min_outputs=5), example_inputs=X)
    assert dict(model.named_modules()) == modules
    assert type(model) is kind
    new = qcompile.transform(model, "Quadra", LSH(tables=1, min_outputs=5), example_inputs=X)
    assert told == new.qcompile_report


def test_example_inputs_that_do_not_fit_are_reported():
    new = qcompile.transform(network(), "Quadra", example_inputs=torch.ones(2, 3))
    assert any("operations not counted" in note for note in new.qcompile_report.notes)
    assert isinstance(new[0], QuadraticLinear)


def test_counting_leaves_no_marks():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    state = copy.deepcopy(model[1].state_dict())
    explain(model, Quadratic("T4"), example_inputs=X)
    assert same(model[1].state_dict(), state)
    assert seen == []


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.max() > 0 else self.other(x)


def test_what_cannot_be_traced_is_transformed_by_the_module_tree():
    new = qcompile.transform(Untraceable(), "Quadra", strict=True)
    assert len(new.qcompile_report.rewritten) == 2
    assert any(note.startswith("not traced") for note in new.qcompile_report.notes)
    failure = new.qcompile_report.notes[0]
    assert "test_transform.py:" in failure
    assert "control flow" in failure


def test_a_run_on_example_inputs_stands_in_for_a_trace():
    new = qcompile.transform(Untraceable(), "Quadra", example_inputs=X)
    assert [entry.name for entry in new.qcompile_report.rewritten] == ["fc"]
    assert "traced by a run" in new.qcompile_report.notes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("model.pt", "got the path 'model.pt': load the model first"),
        (nn.Linear, "got the class Linear: call it first"),
        ({"weight": X}, "got dict"),
        (torch.jit.script(nn.Sequential(nn.Linear(2, 2))), "compiled TorchScript"),
        (torch.export.export(nn.Linear(4, 4), (X,)), "got an ExportedProgram"),
    ],
    ids=["path", "class", "state_dict", "script", "program"],
)
def test_what_is_no_module_is_refused(wrong, message):
    with pytest.raises(PassError, match=message):
        qcompile.transform(wrong, "Quadra")


def test_a_compiled_model_is_unwrapped():
    model = network()
    new = qcompile.transform(torch.compile(model, backend="eager"), "Quadra")
    assert type(new) is nn.Sequential
    assert isinstance(new[0], QuadraticLinear)


def test_a_graph_module_is_a_module():
    model = network().eval()
    new = qcompile.transform(torch.fx.symbolic_trace(model), "Quadra")
    assert torch.equal(new(X), model(X))
    assert len(new.qcompile_report.rewritten) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "asked for nothing"),
        ({"quadratic": []}, "asked for nothing"),
        ({"quadratic": "Quadro"}, "Did you mean 'Quadra'"),
        ({"quadratic": 3}, "takes the name of a form"),
        ({"quadratic": [LSH()]}, "takes the name of a form"),
        ({"sparse_output": "dwta"}, "takes True, a qcompile.LSH"),
        ({"quadratic": "T2", "example_inputs": "x"}, "example_inputs must be"),
    ],
)
def test_malformed_requests(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        qcompile.transform(network(), **arguments)


def test_a_model_that_cannot_be_copied():
    model = network()
    model.cache = (torch.ones(2, requires_grad=True) * 2,)
    with pytest.raises(PassError, match="inplace=True"):
        qcompile.transform(model, "Quadra")
    assert qcompile.transform(model, "Quadra", inplace=True, strict=True) is model


def test_a_strict_failure_leaves_the_model_as_it_was():
    model = network()
    request = Quadratic(where=["0", "nowhere"])
    with pytest.raises(PassError, match="nowhere"):
        qcompile.transform(model, request, strict=True, inplace=True)
    assert type(model[0]) is nn.Linear


def test_models_on_the_meta_device():
    with torch.device("meta"):
        model = network()
    new = qcompile.transform(model, "Quadra")
    assert new[0].weight_a.device.type == "meta"


class Casting(nn.Module):
    """Asks its layers for what surrounding code often needs to know."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 2, 3, stride=2), nn.Linear(2, 3)

    def forward(self, x):
        x = x.to(dtype=self.conv.weight.dtype, device=self.conv.weight.device)
        positions = (x.shape[-1] - self.conv.kernel_size[0]) // self.conv.stride[0] + 1
        return self.head(self.conv(x).sum(-1) / positions).reshape(-1, self.head.weight.shape[0])


@pytest.mark.parametrize("example", [None, torch.ones(2, 1, 9, dtype=torch.float64)])
def test_what_a_forward_asks_of_a_layer_is_still_answered(example):
    model = Casting()
    new = qcompile.transform(model, "Quadra", example_inputs=example)
    assert [entry.name for entry in new.qcompile_report.rewritten] == ["conv", "head"]
    x = torch.randn(2, 1, 9, dtype=torch.float64)
    assert torch.equal(new(x), model(x))
    conv = new.conv
    assert (conv.padding, conv.dilation, conv.groups, conv.padding_mode) == ((0,), (1,), 1, "zeros")
    assert conv.weight.shape == model.conv.weight.shape


class HandMade(nn.Module):
    """Computes with a weight itself, where no tracer comes."""

    def __init__(self, read):
        super().__init__()
        self.fc, self.read = nn.Linear(4, 4), read

    def forward(self, x):
        return self.fc(x) * self.read(self.fc.weight) if float(x.sum()) > 0 else x


@pytest.mark.parametrize("read", [torch.sum, lambda weight: weight.sum()])
def test_a_weight_that_is_read_unseen_is_never_computed_with(read):
    new = qcompile.transform(HandMade(read), "Quadra")
    with pytest.raises((PassError, AttributeError), match="exclude the layer"):
        new(X)
    with pytest.raises(PassError, match=r"does not\. Exclude.*test_transform.py:\d+"):
        qcompile.transform(HandMade(read), "Quadra", example_inputs=X)


def test_a_model_that_needs_its_hooks_is_traced_with_them():
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_forward_pre_hook(lambda _, inputs: inputs[0]["x"])
    report = explain(model, sparse_output=LSH(tables=1, min_outputs=4), example_inputs=({"x": X},))
    assert [entry.name for entry in report.rewritten] == ["0"]
    assert any(note.startswith("floating-point operations") for note in report.notes)


@pytest.mark.parametrize("left", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_compute_are_kept(left):
    model = nn.Sequential(left(nn.Linear(4, 4)), nn.Linear(4, 4)).eval()
    model(X)  # leaves a weight that has a gradient, which copy.deepcopy refuses
    new = qcompile.transform(model, "Quadra")
    assert [entry.name for entry in new.qcompile_report.rewritten] == ["1"]
    assert torch.equal(new(X), model(X))
    with torch.no_grad():
        new[0].bias.add_(1)
    assert not torch.equal(new(X), model(X))


def test_a_layer_that_is_held_outside_the_module_tree_is_loud():
    class Hoarder(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.steps = [self.fc]

        def forward(self, x):
            return self.steps[0](x)

    with pytest.raises(PassError, match="still calls the old layer 'fc'"):
        qcompile.transform(Hoarder(), "Quadra", example_inputs=X, strict=True)
