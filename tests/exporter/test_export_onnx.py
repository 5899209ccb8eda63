"""``export_onnx`` from file to file: what it writes, verifies, tells and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import qcompile
from qcompile import ops
from qcompile.errors import DataError, ExportError
from qcompile.exporter import export_onnx
from qcompile.passes.onnx import emit

CLASSES = 40


def session(path: Path, plugin: bool = False) -> onnxruntime.InferenceSession:
    options = qcompile.session_options() if plugin else onnxruntime.SessionOptions()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rows(count: int = 3) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, 8)).astype(np.float32)


def test_inputs_and_outputs_stay_and_the_source_too(proto, write, files):
    source = write(proto)
    content = source.read_bytes()
    result = export_onnx(source, min_outputs=1)
    assert result.path == source.with_name("model.qcompile.onnx")
    assert files() == ["model.onnx", "model.qcompile.onnx"]
    assert source.read_bytes() == content
    before = session(source)
    for plugin in (False, True):
        after = session(result.path, plugin)
        for side in ("get_inputs", "get_outputs"):
            described = [
                [(value.name, value.type, value.shape) for value in getattr(s, side)()]
                for s in (before, after)
            ]
            assert described[0] == described[1]
        expected, answer = (s.run(None, {"x": rows()})[0] for s in (before, after))
        np.testing.assert_allclose(answer, expected, rtol=2e-3, atol=1e-5)
    again = onnx.load(result.path)
    onnx.checker.check_model(again, full_check=True)
    assert [node.op_type for node in again.graph.node] == ["MatMul", "Relu", "LinearSoftmax"]


def test_the_result_tells_what_was_done(proto, write):
    lines = []
    result = export_onnx(
        write(proto), min_outputs=1, progress=lambda line, part: lines.append(line)
    )
    told = json.loads(json.dumps(result.to_dict()))
    assert told["verified"] == ["functions", "plugin"]
    assert told["max_difference"] < 1e-5
    assert told["bytes"]["before"] == write(proto).stat().st_size
    assert told["bytes"]["after"] == result.path.stat().st_size
    assert set(told["latency_ms"]) == {"model", "head"}
    assert all(figure > 0 for part in told["latency_ms"].values() for figure in part.values())
    assert told["heads"][0]["became"] == "LinearSoftmax"
    assert told["heads"][0]["kind"] == "MatMul+Add+Softmax"
    assert (told["heads"][0]["outputs"], told["heads"][0]["depth"]) == (CLASSES, 12)
    assert "model.qcompile.onnx: 1 rewritten" in str(result)
    assert lines[-1] == "measuring"


def test_metadata_and_versions(proto, write):
    proto.metadata_props.add(key="labels", value="kept")
    proto.ir_version = 13
    result = export_onnx(write(proto), min_outputs=1, verify=False, measure=False)
    written = onnx.load(result.path)
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert metadata["labels"] == "kept"
    assert metadata["qcompile.version"] == qcompile.__version__
    assert metadata["qcompile.mode"] == "exact"
    assert metadata["qcompile.recall"] == "1.0"
    assert json.loads(metadata["qcompile.report"])["rewritten"][0]["became"] == "LinearSoftmax"
    assert written.ir_version == result.ir_version == 9  # onnxruntime 1.17 reads it
    assert not result.differences
    assert not result.latency


def test_a_newer_opset_keeps_the_ir_version_that_it_needs(proto, write):
    proto.opset_import[0].version = 21
    proto.ir_version = 11
    assert export_onnx(write(proto), min_outputs=1).ir_version == 10


def test_top_k_hands_out_the_best_of_the_original_output(proto, write):
    source = write(proto)
    result = export_onnx(source, min_outputs=1, top_k=5)
    full = session(source).run(None, {"x": rows()})[0]
    order = np.argsort(-full, axis=1, kind="stable")[:, :5]
    for plugin in (False, True):
        scores, ids = session(result.path, plugin).run(["scores", "ids"], {"x": rows()})
        np.testing.assert_array_equal(ids, order)
        np.testing.assert_allclose(scores, np.take_along_axis(full, order, 1), rtol=2e-3)
    assert result.top_k == 5
    with pytest.raises(ExportError, match="not between 1 and the 40"):
        export_onnx(source, min_outputs=1, top_k=41)


def test_a_layer_is_chosen_by_name(proto, write):
    source = write(proto)
    for name in ("w2", "node_2", "node_*", "s"):
        assert export_onnx(source, node=name, measure=False).report.modified
    with pytest.raises(ExportError, match=r"answers to 'w1'.*feed MatMul 'node_2'"):
        export_onnx(source, node="w1")
    with pytest.raises(ExportError, match=r"answers to 'nobody'.*'node_0', 'node_2'"):
        export_onnx(source, node="nobody")


def test_no_layer_is_large_enough(proto, write, files):
    with pytest.raises(ExportError, match=r"the largest has 40 outputs; lower min_outputs"):
        export_onnx(write(proto))
    assert files() == ["model.onnx"]


def test_a_graph_without_a_linear_layer(write):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) { y = Relu(x) }'
    )
    with pytest.raises(ExportError, match="it has no linear layer"):
        export_onnx(write(model))


def test_a_weight_with_nan(proto, write, files):
    broken = onnx.numpy_helper.to_array(proto.graph.initializer[1]).copy()
    broken[2, 3] = np.nan
    proto.graph.initializer[1].raw_data = broken.tobytes()
    with pytest.raises(ExportError, match=r"'node_2': its weight 'w2' .* NaN"):
        export_onnx(write(proto), min_outputs=1)
    assert files() == ["model.onnx"]


def test_a_weight_that_is_no_constant(proto, write):
    del proto.graph.initializer[1]
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w2", 1, [12, CLASSES]))
    with pytest.raises(ExportError, match=r"its weight is not constant: 'w2' is a graph input"):
        export_onnx(write(proto), min_outputs=20)


def test_an_exported_file_is_not_exported_again(proto, write):
    result = export_onnx(write(proto), min_outputs=1)
    with pytest.raises(ExportError, match=r"already LinearSoftmax of qcompile.*exported before"):
        export_onnx(result.path, min_outputs=1)


def test_the_source_is_never_overwritten(proto, write, tmp_path):
    source = write(proto)
    (tmp_path / "alias.onnx").symlink_to(source)
    for output in (source, tmp_path / "alias.onnx", tmp_path / "." / "model.onnx"):
        with pytest.raises(ExportError, match="this is the source"):
            export_onnx(source, output, min_outputs=1)


def test_an_output_that_cannot_be_written(proto, write, tmp_path):
    source = write(proto)
    for output in (tmp_path / "nowhere" / "m.onnx", source / "m.onnx", Path("/proc/m.onnx")):
        with pytest.raises(ExportError, match="cannot write"):
            export_onnx(source, output, min_outputs=1)
    with pytest.raises(ExportError, match="this is a folder"):
        export_onnx(source, tmp_path, min_outputs=1)


def test_a_result_that_differs_is_not_published(proto, write, files, monkeypatch):
    source = write(proto)
    output = source.with_name("out.onnx")
    output.write_bytes(b"what was there before")
    whole = emit.initializer

    def wrong(graph, name, array):
        return whole(graph, name, array * np.float32(1.1) if name == "w2.weight" else array)

    monkeypatch.setattr(emit, "initializer", wrong)
    with pytest.raises(ExportError, match=r"output 'y' differs by .*allowed are .*nothing was"):
        export_onnx(source, output, min_outputs=1)
    assert files() == ["model.onnx", "out.onnx"]
    assert output.read_bytes() == b"what was there before"


def test_ids_that_differ_are_found_by_their_scores(proto, write, monkeypatch):
    del proto.graph.node[4], proto.graph.output[0]
    proto.graph.node.add(op_type="ArgMax", name="best", input=["s"], output=["y"]).attribute.add(
        name="axis", i=1, type=onnx.AttributeProto.INT
    )
    proto.graph.output.append(onnx.helper.make_tensor_value_info("y", 7, ["batch", 1]))
    source = write(proto)
    result = export_onnx(source, min_outputs=1, inputs={"x": rows(64)})
    assert result.heads[0].became == "LinearTopK"
    whole = emit.initializer
    monkeypatch.setattr(
        emit,
        "initializer",
        lambda graph, name, array: whole(graph, name, -array if name == "w2.weight" else array),
    )
    with pytest.raises(ExportError, match="output 'y' differs"):
        export_onnx(source, min_outputs=1, inputs={"x": rows(64)})


def test_inner_values_of_half_precision_without_types(write):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float16[b, 8] x) => (int64[b, 1] y) {
            r = Relu(x) m = MatMul(r, w) s = Add(m, c) p = Softmax(s) y = ArgMax<axis=-1>(p)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 40)), ("c", (40,))):
        array = rng.standard_normal(shape).astype(np.float16)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result = export_onnx(write(model), min_outputs=1)
    assert result.heads[0].became == "LinearTopK"
    assert "head" in result.latency


def test_equal_scores_may_swap_their_ids(proto, write):
    """All weights are zero, so every class scores alike and any id is right."""
    for tensor in proto.graph.initializer[1:]:
        tensor.raw_data = bytes(len(tensor.raw_data))
    result = export_onnx(write(proto), min_outputs=1, top_k=3)
    assert result.max_difference < 1e-6


def test_weights_go_to_a_file_of_their_own_above_a_size(proto, write, files, tmp_path):
    result = export_onnx(write(proto), min_outputs=1, external_above=100)
    assert files() == ["model.onnx", "model.qcompile.onnx", "model.qcompile.onnx.data"]
    assert result.data_path == tmp_path / "model.qcompile.onnx.data"
    assert result.to_dict()["data_path"] == str(result.data_path)
    total = sum(path.stat().st_size for path in (result.path, result.data_path))
    assert result.size[1] == total
    onnx.checker.check_model(str(result.path), full_check=True)
    session(result.path, plugin=True).run(None, {"x": rows()})


def test_external_data_stays_external(proto, write, files, tmp_path):
    onnx.save(
        proto, tmp_path / "big.onnx", save_as_external_data=True, location="big.bin",
        size_threshold=0,
    )  # fmt: skip
    source_bytes = sum((tmp_path / name).stat().st_size for name in ("big.onnx", "big.bin"))
    result = export_onnx(tmp_path / "big.onnx", min_outputs=1)
    assert result.data_path is not None
    assert result.size[0] == source_bytes
    assert files() == ["big.bin", "big.onnx", "big.qcompile.onnx", "big.qcompile.onnx.data"]
    (tmp_path / "big.bin").unlink()  # the result does not lean on the source's data
    session(result.path).run(None, {"x": rows()})


def test_given_inputs_are_used(proto, write, tmp_path):
    np.savez(tmp_path / "inputs.npz", x=rows(7))
    export_onnx(write(proto), min_outputs=1, inputs=tmp_path / "inputs.npz")
    export_onnx(write(proto), min_outputs=1, inputs={"x": rows(1)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "the model reads x; given are none"),
        ({"x": rows(), "z": rows()}, "given are x, z"),
        ({"x": rows().astype(np.float64)}, "'x' is float64"),
        ({"x": rows()[:, :7]}, r"'x' has shape \[3, 7\]"),
        ({"x": rows()[0]}, r"'x' has shape \[8\]"),
        ("nowhere.npz", "cannot be read"),
    ],
)
def test_inputs_that_do_not_fit(proto, write, inputs, message):
    with pytest.raises(DataError, match=message):
        export_onnx(write(proto), min_outputs=1, inputs=inputs)


def test_inputs_are_invented_within_tables_and_masks(write):
    """Ids beyond the table or a mask of zeros would fail or answer NaN."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[b, t] ids, int64[b, t] attention_mask) => (float[b, t, 50] y) {
            c = Cast<to=7>(ids) e = Gather(table, c) m = Cast<to=1>(attention_mask)
            axis = Constant<value_ints=[2]>() u = Unsqueeze(m, axis)
            v = Sqrt(u) h = Div(e, v) y = MatMul(h, w)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("table", (3, 6)), ("w", (6, 50))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result = export_onnx(write(model), min_outputs=20)
    assert result.heads[0].became == "Linear"


def test_a_model_that_runs_on_nothing_invented(proto, write):
    proto.graph.node.insert(0, onnx.helper.make_node("Reshape", ["x", "never"], ["x9"], name="odd"))
    proto.graph.node[1].input[0] = "x9"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([13, 8]), "never"))
    with pytest.raises(ExportError, match=r"runs on no random input.*--inputs"):
        export_onnx(write(proto), min_outputs=1)
    result = export_onnx(write(proto), min_outputs=1, inputs={"x": rows(13)})
    assert result.report.modified


def test_an_answer_without_a_finite_number_verifies_nothing(proto, write):
    proto.graph.node.insert(0, onnx.helper.make_node("Div", ["x", "zero"], ["x9"]))
    proto.graph.node[1].input[0] = "x9"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "zero"))
    with pytest.raises(ExportError, match="no finite number"):
        export_onnx(write(proto), min_outputs=1)


def test_reading_back_gives_the_same_model(proto, write):
    """What is written can be read by onnx_ir, and its function bodies are there."""
    result = export_onnx(write(proto), min_outputs=1)
    model = ir.load(result.path)
    assert [key[:2] for key in model.functions] == [("qcompile", "LinearSoftmax")]
    assert model.opset_imports == {"": 17, "qcompile": ops.VERSION}
