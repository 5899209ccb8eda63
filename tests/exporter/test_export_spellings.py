"""Whole files with unusual output layers, from export to the answers of onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_graphs import CONSTANTS, D, N, hidden, model, weight

import qcompile
from qcompile.exporter import export_onnx

MICROSOFT = ', "com.microsoft" : 1'


def answers(path, feeds: dict[str, np.ndarray], plugin: bool) -> list[np.ndarray]:
    options = qcompile.session_options() if plugin else onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(str(path), options).run(None, feeds)


SOURCES = {
    "segmentation": {
        "body": "c = Conv(h, kernel, b) y = ArgMax<axis=1, keepdims=0>(c)",
        "inputs": f"float[B, {D}, 3, 4] h",
        "outputs": "int64[B, 3, 4] y",
        "kernel": weight().reshape(N, D, 1, 1),
        "b": CONSTANTS["b"],
    },
    "segmentation, kept": {
        "body": "c = Conv(h, kernel, b) y = ArgMax<axis=1>(c)",
        "inputs": f"float[B, {D}, 3, 4] h",
        "outputs": "int64[B, 1, 3, 4] y",
        "kernel": weight().reshape(N, D, 1, 1),
        "b": CONSTANTS["b"],
    },
    "speech": {
        "body": "c = Conv(h, kernel, b) t = Transpose<perm=[0, 2, 1]>(c) y = Softmax<axis=-1>(t)",
        "inputs": f"float[B, {D}, T] h",
        "outputs": f"float[B, T, {N}] y",
        "kernel": weight().reshape(N, D, 1),
        "b": CONSTANTS["b"],
    },
    "static integers": {
        "body": "q = QuantizeLinear(h, qs, qz) p = QLinearMatMul(q, qs, qz, w, ws, wz, ys, yz) "
        "y = DequantizeLinear(p, ys, yz)",
        "qs": np.float32(0.04),
        "qz": np.uint8(120),
        "w": np.arange(D * N, dtype=np.int8).reshape(D, N),
        "ws": np.float32(0.01),
        "wz": np.int8(2),
        "ys": np.float32(0.02),
        "yz": np.uint8(128),
    },
    "four bits": {
        "body": f"y = com.microsoft.MatMulNBits<K=32, N={N}, bits=4, block_size=16, "
        "accuracy_level=4>(h, w, s)",
        "inputs": "float[B, 32] h",
        "domains": MICROSOFT,
        "w": np.arange(N * 16, dtype=np.uint8).reshape(N, 2, 8),
        "s": np.full(2 * N, 0.05, np.float32),
    },
    "dynamic": {
        "body": "y = com.microsoft.DynamicQuantizeMatMul(h, w, s)",
        "domains": MICROSOFT,
        "w": np.arange(D * N, dtype=np.int8).reshape(D, N),
        "s": np.float32([0.01]),
    },
}


@pytest.mark.parametrize(
    ("name", "top_k"),
    [
        (name, top_k)
        for name, source in SOURCES.items()
        for top_k in (None, 3)
        if top_k is None or "int64" not in source.get("outputs", "")
    ],
)
def test_a_file_is_exported_and_verified(name, top_k, tmp_path):
    source = tmp_path / "model.onnx"
    built = model(**SOURCES[name])
    onnx.save(ir.to_proto(built), source)
    result = export_onnx(source, min_outputs=1, top_k=top_k, measure=False)
    assert {difference.variant for difference in result.differences} == {"plugin", "functions"}
    assert [head.became.split("+")[0] for head in result.heads] != ["Linear"] or top_k is None
    feeds = {
        value.name: hidden(*(size if isinstance(size, int) else 6 for size in value.shape))
        for value in built.graph.inputs
    }
    before = answers(source, feeds, plugin=False)
    for plugin in (False, True):
        after = answers(result.path, feeds, plugin)
        if top_k is None:
            assert [a.shape for a in after] == [b.shape for b in before]
            assert [a.dtype for a in after] == [b.dtype for b in before]
        else:
            assert [a.shape for a in after] == [(*before[0].shape[:-1], 3)] * 2


def test_the_best_of_several_layers(tmp_path):
    source = tmp_path / "model.onnx"
    m = model(
        "y = MatMul(h, w) z = MatMul(h, u)",
        outputs=f"float[B, {N}] y, float[B, 50] z",
        w=CONSTANTS["w"],
        u=weight(50, D, 5).T.copy(),
    )
    onnx.save(ir.to_proto(m), source)
    result = export_onnx(source, min_outputs=1, top_k=2)
    assert [head.outputs for head in result.heads] == [N, 50]
    names = [output.name for output in onnx.load(result.path).graph.output]
    assert names == ["y_scores", "y_ids", "z_scores", "z_ids"]
