"""Fused modules among others: changed later, copied, trained, compiled and exported."""

import copy
import io

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from products import Product, Spelling, fused_calls
from torch import nn

import qcompile
from qcompile import ConfigurationError, PassError
from qcompile.fused import Fusion, fusion_of, unfuse
from qcompile.nn import QuadraticLinear
from qcompile.rewrite import explain


class Gated(nn.Module):
    """A gated layer as transformers have it."""

    def __init__(self, act=None):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)
        self.down_proj, self.drop = nn.Linear(6, 4), nn.Dropout(0.3)
        self.act_fn = act or nn.SiLU()
        self.scale = 1.0

    def forward(self, x):
        hidden = self.drop(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return self.scale * self.down_proj(hidden)


class Adapted(nn.Module):
    """A low-rank adapter beside a layer."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 1, bias=False)
        self.up = nn.Linear(1, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Gated(), Gated()])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def test_the_model_stays_what_it_was():
    model = Network()
    fused = qcompile.transform(model, fuse=True, example_inputs=X)
    report = fused.qcompile_report
    assert report.summary().startswith("2 rewritten (2 × gate_proj, up_proj fused: T4, silu gate)")
    assert [entry.name for entry in report.rewritten] == ["layers.0", "layers.1"]
    assert all(before == after for before, after in (e.parameters for e in report.entries))
    assert all(before == after > 0 for before, after in (e.flops for e in report.entries))
    assert list(fused.state_dict()) == list(model.state_dict())
    assert isinstance(fused.layers[0], Gated)
    assert repr(fused) == repr(model)
    assert type(model.layers[0]) is Gated
    assert fusion_of(model.layers[0]) is None
    fused.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fused.eval()(X), model.eval()(X))


def test_in_place_the_parameters_are_the_same_objects():
    model = Network()
    before = dict(model.named_parameters())
    fused = qcompile.transform(model, fuse=True, inplace=True)
    assert fused is model
    assert all(parameter is before[name] for name, parameter in fused.named_parameters())
    again = qcompile.transform(fused, fuse=True, inplace=True)
    assert again.qcompile_report.summary() == "0 rewritten: already fused (2)"
    assert not again.qcompile_report.problems


def test_explain_changes_nothing():
    model = Network()
    told = explain(model, fuse=True)
    assert len(told.rewritten) == 2
    assert type(model.layers[0]) is Gated
    assert fusion_of(model.layers[0]) is None


def test_where_nothing_is_to_be_fused():
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(PassError, match="fuse: 0 rewritten: nothing of a matching type"):
        qcompile.transform(model, fuse=True, strict=True)
    with pytest.warns(qcompile.errors.QCompileWarning, match="fuse: 0 rewritten"):
        qcompile.transform(model, fuse=True)
    with pytest.raises(ConfigurationError, match="or fuse=True"):
        qcompile.transform(model)


def test_quadratic_layers_are_fused_after_they_are_made():
    fused = qcompile.transform(Network(), "Quadra", fuse=True, example_inputs=X)
    names = [entry.pass_name for entry in fused.qcompile_report.rewritten]
    assert names == ["quadratic"] * 7 + ["fuse"] * 7
    layers = [m for m in fused.modules() if isinstance(m, QuadraticLinear)]
    assert all(fusion_of(layer) for layer in layers)
    assert fusion_of(fused.layers[0]) is None


def test_layers_that_recompute_for_a_budget_are_not_fused():
    model = nn.Sequential(QuadraticLinear(4, 64), QuadraticLinear(64, 4))
    inputs = torch.randn(4096, 4)
    tight = {"memory": "auto", "memory_budget": "6MiB", "example_inputs": inputs}
    fused = qcompile.transform(model, fuse=True, **tight)
    levels = [layer.memory for layer in fused]
    assert any(levels)
    assert [fusion_of(layer) is None for layer in fused] == [level > 0 for level in levels]


def test_a_layer_that_others_read_stays_first_order():
    fused = qcompile.transform(Network(), fuse=True)
    quadratic = qcompile.transform(fused, "Quadra", example_inputs=X)
    replaced = {entry.name for entry in quadratic.qcompile_report.rewritten}
    assert replaced == {"layers.0.down_proj", "layers.1.down_proj", "head"}
    assert torch.equal(quadratic.eval()(X), fused.eval()(X))


def adapt(layer):
    layer.up_proj = Adapted(layer.up_proj)


def hook(layer):
    layer.gate_proj.register_forward_hook(lambda module, args, output: output + 1)


def parametrise(layer):
    nn.utils.parametrize.register_parametrization(layer.gate_proj, "weight", nn.Tanh())


def rescale(layer):
    layer.scale = 2.0


def activate_otherwise(layer):
    layer.act_fn = nn.Mish()


def override(layer):
    layer.up_proj.forward = lambda x: torch.ones(len(x), 6)


def drop_activation(layer):
    layer.act_fn = nn.Sequential()


def add_bias(layer):
    layer.up_proj.bias = nn.Parameter(torch.ones(6))


def resize(layer):
    layer.gate_proj.weight = nn.Parameter(torch.ones(1, 4))
    layer.gate_proj.bias = nn.Parameter(torch.ones(1))


CHANGES = {
    resize: "gate_proj.weight has another shape",
    adapt: "up_proj has become Adapted",
    hook: "gate_proj has hooks",
    parametrise: "gate_proj has become ParametrizedLinear",
    activate_otherwise: "act_fn has become Mish",
    override: "up_proj has changed",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_layer_that_changes_later_is_called(change):
    model = Gated().eval()
    fused = qcompile.transform(model, fuse=True)
    for m in (model, fused):
        torch.manual_seed(1)
        change(m)
    assert fusion_of(fused).misfit(fused) == CHANGES[change]
    assert torch.equal(fused(X), model(X))
    with pytest.warns(
        qcompile.errors.QCompileWarning, match=f"fused before, but {CHANGES[change]}"
    ):
        qcompile.transform(fused, fuse=True, inplace=True)
    assert torch.equal(fused(X), model(X))


@pytest.mark.parametrize("change", [rescale, drop_activation, add_bias])
def test_what_changes_later_is_fused_anew(change):
    model = Gated().eval()
    fused = qcompile.transform(model, fuse=True)
    change(model)
    change(fused)
    assert fusion_of(fused).misfit(fused)
    assert torch.equal(fused(X), model(X))
    assert qcompile.transform(fused, fuse=True, inplace=True).qcompile_report.modified
    assert not fusion_of(fused).misfit(fused)
    assert torch.equal(fused(X), model(X))


def test_a_layer_that_is_gone_is_named():
    fused = qcompile.transform(Gated(), fuse=True)
    del fused.up_proj
    assert fusion_of(fused).misfit(fused) == "up_proj is gone"
    with pytest.raises(AttributeError, match="up_proj"):
        fused(X)


def test_fusion_can_be_undone():
    model = Gated().eval()
    fused = qcompile.transform(model, fuse=True)
    unfuse(fused)
    assert type(fused) is Gated
    assert torch.equal(fused(X), model(X))
    unfuse(fused)
    assert type(fused) is Gated


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "copy"])
def test_copies(way):
    fused = qcompile.transform(Network(), fuse=True).eval()
    if way == "pickle":
        file = io.BytesIO()
        torch.save(fused, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    else:
        copied = getattr(copy, way)(fused)
    assert torch.equal(copied(X), fused(X))
    assert len(fused_calls(copied)) == 2
    assert isinstance(fusion_of(copied.layers[0]), Fusion)
    if way != "copy":
        copied.layers[0].gate_proj.weight.data.zero_()
        assert not torch.equal(copied(X), fused(X))


def test_training_goes_on_as_it_would_have():
    model = Network()
    fused = qcompile.transform(model, fuse=True)
    losses = []
    for m in (model, fused):
        optimizer = torch.optim.AdamW(m.parameters(), lr=0.05)
        torch.manual_seed(3)
        for _ in range(4):
            optimizer.zero_grad()
            loss = m(X).square().sum()
            loss.backward()
            optimizer.step()
        losses.append(loss)
    assert torch.equal(*losses)
    pairs = zip(model.parameters(), fused.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_optimiser_made_before_keeps_its_parameters():
    model = Network().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    qcompile.transform(model, fuse=True, inplace=True)
    before = model.layers[0].up_proj.weight.detach().clone()
    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(model.layers[0].up_proj.weight, before)


@pytest.mark.parametrize("form", ["T2", "T3", "T4", "T2_4", "Quadra"])
def test_autocast(form):
    model = Product(Spelling(form, gate="silu", activation="relu"))
    fused = qcompile.transform(model, fuse=True)
    x = torch.randn(4, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [m(x) for m in (model, fused)]
    assert outputs[1].dtype is torch.bfloat16
    assert torch.equal(*outputs)
    grads = [torch.autograd.grad(y.sum(), [x])[0] for y in outputs]
    assert torch.equal(*grads)


def test_half_precision_and_types_changed_afterwards():
    model = Network().eval()
    fused = qcompile.transform(model, fuse=True)
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(fused.to(dtype)(X.to(dtype)), model.to(dtype)(X.to(dtype)))
        assert len(fused_calls(fused)) == 2


def test_hooks_around_a_fused_module_run():
    fused = qcompile.transform(Network(), fuse=True)
    seen = []
    fused.layers[0].register_forward_hook(lambda *_: seen.append("fused"))
    fused.layers[0].down_proj.register_forward_hook(lambda *_: seen.append("behind"))
    fused(X)
    assert seen == ["behind", "fused"]
    assert not fusion_of(fused.layers[0]).misfit(fused.layers[0])


def test_per_example_gradients():
    model = Network().eval()
    fused = qcompile.transform(model, fuse=True)

    def loss(parameters, x, m):
        return torch.func.functional_call(m, parameters, (x,)).sum()

    found = [
        torch.func.vmap(torch.func.grad(loss), (None, 0, None))(dict(m.named_parameters()), X, m)
        for m in (model, fused)
    ]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_torch_compile_sees_one_graph():
    model = Network().eval()
    fused = qcompile.transform(model, fuse=True)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), model(X))


def test_onnx_has_standard_operators(tmp_path):
    forms = {"T2": "module", "T3": "function", "T4": "chunk", "T2_4": "split", "Quadra": "slice"}
    layers = [Product(Spelling(form, how, gate="silu")) for form, how in forms.items()]
    blocks = [block for layer in layers for block in (layer, nn.LayerNorm(7), nn.Linear(7, 5))]
    model = nn.Sequential(*blocks, nn.Linear(5, 4), Gated(nn.GELU())).eval()
    fused = qcompile.transform(model, fuse=True)
    assert len(fused_calls(fused)) == 6
    x, answers = torch.randn(3, 5), []
    for name, m in (("plain", model), ("fused", fused)):
        path = tmp_path / f"{name}.onnx"
        batch = torch.export.Dim("batch")
        torch.onnx.export(m, (x,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        assert {node.domain for node in onnx.load(path).graph.node} == {""}
        session = onnxruntime.InferenceSession(path)
        for rows in (x, x[:2]):
            found = session.run(None, {session.get_inputs()[0].name: rows.numpy()})[0]
            np.testing.assert_allclose(found, m(rows).detach(), rtol=1e-4, atol=1e-5)
            answers.append(found)
    np.testing.assert_allclose(answers[2], answers[0], rtol=1e-4, atol=1e-5)


def test_qcompile_export_takes_a_fused_model(tmp_path):
    model = nn.Sequential(Gated(), nn.Linear(4, 5000)).eval()
    fused = qcompile.transform(model, fuse=True)
    path = tmp_path / "model.onnx"
    qcompile.export(fused, path, (X,), top_k=3)
    session = onnxruntime.InferenceSession(path, qcompile.session_options())
    _, ids = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert torch.equal(torch.from_numpy(ids).long(), model(X).topk(3).indices)
