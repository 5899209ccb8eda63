"""What an exported layer keeps of its rows: said in the report and the metadata, and kept to."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_graphs import model

import qcompile
from qcompile.cli import main
from qcompile.errors import ConfigurationError, DataError, ExportError
from qcompile.exporter import export_onnx

DEPTH, CLASSES = 40, 5003


@pytest.fixture
def source(tmp_path):
    def write(expression="y = MatMul(h, w)", opset=18, **more: np.ndarray):
        rng = np.random.default_rng(0)
        built = model(
            expression,
            inputs=f"float[B, {DEPTH}] h",
            outputs=f"float[B, {CLASSES}] y",
            opset=opset,
            w=rng.standard_normal((DEPTH, CLASSES)).astype(np.float32),
            **more,
        )
        path = tmp_path / "model.onnx"
        onnx.save(ir.to_proto(built), path)
        return path

    return write


def hidden(rows: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, DEPTH)).astype(np.float32)


@pytest.mark.parametrize(
    ("rescore", "most", "form"), [("bf16", 0.6, "bfloat16"), ("none", 0.35, "eight bits")]
)
def test_rows_are_smaller_and_the_file_says_so(source, rescore, most, form):
    path = source()
    result = export_onnx(path, top_k=5, rescore=rescore, measure=False)
    whole = export_onnx(path, path.with_name("whole.onnx"), top_k=5, measure=False)
    assert result.size[1] < most * whole.size[1]
    assert [head.rescore for head in result.heads] == [rescore]
    assert {d.variant for d in result.differences} == {"plugin", "functions"}
    told = {p.key: p.value for p in onnx.load(result.path, load_external_data=False).metadata_props}
    assert told["qcompile.rescore"] == rescore
    assert form in told["qcompile.rescore.meaning"] and form in told["qcompile.report"]
    assert any(form in note for note in result.report.notes)
    options = qcompile.session_options()
    session = onnxruntime.InferenceSession(str(result.path), options)
    body = onnxruntime.InferenceSession(str(result.path))
    for batch in (1, 9):
        mine, plain = (s.run(None, {"h": hidden(batch)}) for s in (session, body))
        np.testing.assert_array_equal(mine[1], plain[1])
        np.testing.assert_allclose(mine[0], plain[0], rtol=1e-5, atol=1e-4)


def test_the_command_takes_it(source, capsys):
    path = source()
    assert main(["export", str(path), "--top-k", "3", "--rescore", "bf16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["heads"][0]["rescore"] == "bf16"
    assert main(["inspect", told["path"]]) == 0
    assert "bf16" in capsys.readouterr().out


def test_layers_that_need_their_rows_keep_them(source):
    result = export_onnx(source(), rescore="bf16", measure=False)
    assert result.heads[0].rescore == "fp32"
    assert any("float32: Linear needs every score" in note for note in result.report.notes)


@pytest.mark.parametrize("rescore", ["bf16", "none"])
def test_hash_tables_go_with_rounded_rows(source, rescore):
    result = export_onnx(source(), top_k=5, mode="lsh", rescore=rescore, measure=False)
    assert (result.heads[0].mode, result.heads[0].rescore) == ("lsh", rescore)


def test_cells_go_with_rows_in_bfloat16_alone(source):
    result = export_onnx(source(), top_k=5, mode="cells", rescore="bf16", measure=False)
    assert (result.heads[0].mode, result.heads[0].rescore) == ("cells", "bf16")
    with pytest.raises(DataError, match="no rows to search in cells"):
        export_onnx(source(), top_k=5, mode="cells", rescore="none", measure=False)


def test_refuses_what_cannot_be(source):
    with pytest.raises(ConfigurationError, match="rescore"):
        export_onnx(source(), top_k=5, rescore="fp16")
    with pytest.raises(ExportError, match="'bf16' needs opset 13 or later, the model has 12"):
        export_onnx(source(opset=12), top_k=5, rescore="bf16")


def test_torch_models_take_it(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.Linear(DEPTH, CLASSES)
    path = tmp_path / "torch.onnx"
    rows = torch.from_numpy(hidden(3))
    result = qcompile.export(layer, path, (rows,), top_k=4, rescore="none", measure=False)
    assert result.heads[0].rescore == "none"
    scores, _ = onnxruntime.InferenceSession(str(path), qcompile.session_options()).run(
        None, {result_input(path): rows.numpy()}
    )
    expected = layer(rows).detach().topk(4).values.numpy()
    np.testing.assert_allclose(scores, expected, atol=2e-2)


def result_input(path) -> str:
    return onnxruntime.InferenceSession(str(path)).get_inputs()[0].name
