"""``export`` of torch modules: same answers in onnxruntime, the module itself untouched."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import qcompile
from qcompile.errors import DataError, ExportError, TraceError
from qcompile.exporter import export
from qcompile.nn.lsh import LSHLinear
from qcompile.runtime.index import build_lsh


class Classifier(nn.Module):
    """An embedding of tokens beside dense features, dropout, and a head of ``classes``."""

    def __init__(self, classes: int = 60, head: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.dense = nn.Linear(5, 10)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(16)
        self.head = head(16, classes)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        pooled = self.embedding(tokens).mean(dim=1)
        hidden = torch.cat([pooled, torch.relu(self.dense(features))], dim=1)
        return self.head(self.dropout(self.norm(hidden)))


def inputs(batch: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 20, (batch, 4)), torch.randn(batch, 5)


def run(path: Path, *arrays: Tensor, plugin: bool = True) -> list[np.ndarray]:
    options = qcompile.session_options() if plugin else onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {n: a.numpy() for n, a in zip(names, arrays, strict=True)})


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_any_batch_gives_what_the_module_gives(path):
    model = Classifier()
    result = export(model, path, inputs(), min_outputs=50)
    assert result.path == path
    assert [head.became for head in result.heads] == ["Linear"]
    assert {d.variant for d in result.differences} == {"plugin", "functions"}
    assert set(result.latency) == {"model", "head"}
    model.eval()
    for batch in (1, 2, 7):
        tokens, features = inputs(batch)
        expected = model(tokens, features).detach().numpy()
        for plugin in (False, True):
            (answer,) = run(path, tokens, features, plugin=plugin)
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_the_module_is_left_as_it_was(path, capfd):
    model = Classifier(head=LSHLinear)
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    parameters = [id(parameter) for parameter in model.parameters()]
    export(model, path, inputs(), measure=False)
    assert [module.training for module in model.modules()] == modes
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert capfd.readouterr().out == ""


def test_a_failing_export_leaves_the_module_and_the_folder(path, tmp_path):
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout()).train()
    with pytest.raises(ExportError, match="no output layer"):
        export(model, path, torch.randn(2, 5), top_k=2)
    assert all(module.training for module in model.modules())
    assert list(tmp_path.iterdir()) == []


def test_a_sparse_layer_is_found_whatever_its_size(path):
    model = Classifier(classes=9, head=LSHLinear)
    result = export(model, path, inputs())
    assert operators(path) >= {"Linear"}
    assert result.report.rewritten[0].reason == "Linear"
    assert not export(Classifier(classes=9), path, inputs()).report.modified


def test_tied_sparse_weights(path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(30, 8)
            self.head = LSHLinear(8, 30)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens))

    result = export(Tied(), path, torch.randint(0, 30, (2, 3)))
    assert [head.became for head in result.heads] == ["Linear"]
    assert sum(list(t.dims) == [30, 8] for t in onnx.load(path).graph.initializer) == 1


def test_top_k(path):
    model = Classifier(head=LSHLinear)
    result = export(model, path, inputs(), top_k=3)
    assert "LinearTopK" in operators(path)
    assert result.top_k == 3
    tokens, features = inputs(5)
    expected = model.eval()(tokens, features).topk(3)
    for plugin in (False, True):
        scores, ids = run(path, tokens, features, plugin=plugin)
        np.testing.assert_array_equal(ids, expected.indices.numpy())
        np.testing.assert_allclose(scores, expected.values.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_transformed_model(path):
    """Quadratic layers become standard operators, the target of training no input."""
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 80))
    model = qcompile.transform(
        model, qcompile.Quadratic("Quadra", where="0"), qcompile.LSH(where="2")
    )
    example = torch.randn(4, 12)
    loss = model(example, target=torch.randint(0, 80, (4,))).loss
    assert loss.isfinite()
    result = export(model, path, (example,))
    assert [head.outputs for head in result.heads] == [80]
    assert len(onnx.load(path).graph.input) == 1
    (answer,) = run(path, example)
    with torch.no_grad():
        np.testing.assert_allclose(answer, model.eval()(example).numpy(), rtol=1e-4, atol=1e-5)


def test_a_convolutional_model_transformed(path):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 70),
    )  # fmt: skip
    model = qcompile.transform(model, qcompile.Quadratic("T4", where="0"))
    result = export(model, path, torch.randn(2, 3, 9, 9), min_outputs=64)
    assert result.max_difference < 1e-4


def test_without_a_huge_layer_it_is_written_with_a_note(path):
    result = export(nn.Linear(4, 3), path, torch.randn(2, 4))
    assert result.heads == []
    assert "standard operators alone" in result.report.notes[0]
    assert "qcompile" not in {i.domain for i in onnx.load(path).opset_import}


def test_names_and_opset(path):
    result = export(
        Classifier(), path, inputs(), min_outputs=50, opset_version=20,
        input_names=["words", "numbers"], output_names=["logits"],
    )  # fmt: skip
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["words", "numbers"]
    assert [value.name for value in graph.output] == ["logits"]
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert result.opset == 20
    assert result.ir_version == 9


def test_keyword_inputs_and_an_example_of_one_row(path):
    tokens, features = inputs(1)
    export(Classifier(), path, {"tokens": tokens, "features": features}, min_outputs=50)
    (answer,) = run(path, *inputs(6))
    assert answer.shape == (6, 60)


def test_inputs_of_another_first_dimension_stay_fixed(path):
    class Scored(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x @ table

    export(Scored(), path, (torch.randn(2, 5), torch.randn(5, 9)))
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load(path).graph.input
    ]
    assert shapes == [["batch", 5], [5, 9]]


def test_fixed_dimensions(path):
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1).reshape(2, 4, 2).sum(dim=2)

    with pytest.raises(TraceError, match=r"dimension 0 of 'x' .* became the constant 2"):
        export(Fixed(), path, torch.randn(2, 8))
    assert not path.exists()
    export(Fixed(), path, torch.randn(2, 8), dynamic_shapes=False)
    assert path.exists()


def test_dimensions_of_the_user(path):
    length = torch.export.Dim("length", min=2, max=64)
    export(
        nn.Linear(8, 60), path, torch.randn(2, 5, 8), min_outputs=50,
        dynamic_shapes=({1: length},),
    )  # fmt: skip
    (answer,) = run(path, torch.randn(2, 9, 8))
    assert answer.shape == (2, 9, 60)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(3, 3)


def test_what_cannot_be_traced_names_module_line_and_a_way_round(path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Branching()))
    with pytest.raises(TraceError, match=r"module '1.0' .*test_export_torch.py:\d+.*torch.where"):
        export(model, path, torch.randn(2, 4))
    assert not path.exists()


def test_a_module_that_fails_on_its_inputs(path):
    model = nn.Sequential(nn.Linear(4, 4), Failing())
    with pytest.raises(TraceError, match=r"fails on example_inputs in module '1' .*py:\d+"):
        export(model, path, torch.randn(2, 4))


@pytest.mark.parametrize("example", [None, (), 3, torch.empty(0, 4), (torch.randn(2, 4), None)])
def test_example_inputs_that_are_none(path, example):
    with pytest.raises((DataError, TraceError)):
        export(nn.Linear(4, 4), path, example)
    assert not path.exists()


def test_a_program_of_torch_export(path):
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Classifier().eval(), inputs(), dynamic_shapes=({0: batch}, {0: batch})
    )
    result = export(program, path, min_outputs=50)
    assert [head.became for head in result.heads] == ["Linear"]
    tokens, features = inputs(6)
    expected = program.module()(tokens, features).detach().numpy()
    np.testing.assert_allclose(run(path, tokens, features)[0], expected, rtol=1e-4, atol=1e-5)


def test_an_answer_that_differs_is_not_published(path, tmp_path, monkeypatch):
    from qcompile.passes.onnx import emit

    whole = emit.initializer

    def wrong(graph, name, array):
        return whole(graph, name, array + 1 if name.endswith("bias") else array)

    monkeypatch.setattr(emit, "initializer", wrong)
    model = nn.Linear(4, 60, bias=False)
    with pytest.raises(ExportError, match="differs by 1"):
        export(model, path, torch.randn(2, 4), min_outputs=50)
    assert list(tmp_path.iterdir()) == []


def test_several_outputs(path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 60), nn.Linear(4, 70)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"first": self.first(x).softmax(dim=-1), "second": self.second(x)}

    result = export(Two(), path, torch.randn(3, 4), min_outputs=50)
    assert sorted(head.became for head in result.heads) == ["Linear", "LinearSoftmax"]
    assert len(run(path, torch.randn(5, 4))) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("program", [False, True])
def test_a_parameter_that_is_not_finite(tmp_path, value, program):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5000))
    with torch.no_grad():
        model[1].weight[3, 3] = value
    inputs = (torch.randn(2, 4),)
    source = torch.export.export(model, inputs) if program else model
    with pytest.raises(ExportError, match=r"parameter '1\.weight' .* NaN or infinity"):
        qcompile.export(source, tmp_path / "model.onnx", inputs)
    assert not list(tmp_path.iterdir())


class Sparse(nn.Module):
    """A layer with trained hash tables, behind one of its own."""

    def __init__(self, config: qcompile.LSH) -> None:
        super().__init__()
        self.front = nn.Linear(6, 20)
        self.head = LSHLinear(20, 700, config=config)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        return self.head(torch.relu(self.front(x)), target)


def test_the_tables_of_a_trained_layer_serve_it(path):
    config = qcompile.LSH(family="dwta", tables=7, hashes=2, rehash=1, renew=1, negatives=8, seed=3)
    model = Sparse(config)
    for _ in range(3):
        model(torch.randn(4, 6), torch.randint(700, (4,))).loss.backward()
    x = torch.randn(30, 6)
    result = export(model.eval(), path, (x,), top_k=3, mode="lsh", measure=False)
    node = next(n for n in onnx.load(path).graph.node if n.op_type == "LinearTopK")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (attributes["family"], attributes["tables"], attributes["hashes"]) == (b"dwta", 7, 2)
    assert model.head.draw > 0
    weight = model.head.weight.detach().numpy()
    tables = {"family": "dwta", "tables": 7, "hashes": 2, "bucket": config.bucket, "seed": 3}
    index = build_lsh(weight, **tables, draw=model.head.draw)
    assert attributes["seed"] == index.attributes["seed"]
    assert result.heads[0].mode == "lsh"
    scores, ids = run(path, x)
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(scores, np.take_along_axis(expected, ids, 1), rtol=1e-4, atol=1e-4)


def test_a_promise_for_a_torch_model(path, monkeypatch):
    monkeypatch.setattr("qcompile.calibration.search._WORTH", float("inf"))
    model = Sparse(qcompile.LSH(tables=7, hashes=2)).eval()
    x = torch.randn(600, 6)
    result = export(model, path, (x[:3],), top_k=2, recall=0.8, calibration=(x,), measure=False)
    (choice,) = result.choices.values()
    assert choice.index.mode in ("cells", "lsh")
    assert choice.recall.mean >= 0.8
    by_name = {"x": x.numpy()}
    result = export(model, path, (x[:3],), top_k=2, recall=1.0, calibration=by_name, measure=False)
    assert [c.index.mode for c in result.choices.values()] == ["exact"]
