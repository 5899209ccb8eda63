"""ONNX models of one output layer in standard operators: dense, and quantised in three ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from retrieval.heads import Head

__all__ = ["FLOAT", "INT8", "INT8_RESCORED", "NBITS", "write"]

FLOAT, INT8, INT8_RESCORED, NBITS = "fp32", "int8", "int8, 100 rescored", "8 bits"
_CANDIDATES = 100


def write(kind: str, head: Head, k: int, file: Path) -> None:
    """Write hidden [batch, d] → scores, ids [batch, k], its weights in a file beside it."""
    if kind == NBITS:
        _save(_model([*_few_bits(head), *_top("all", k, "scores", "ids")], head, k), file)
        return
    product = [
        helper.make_node("MatMul", ["hidden", "transposed"], ["product"], name="product"),
        helper.make_node("Add", ["product", "bias"], ["all"]),
    ]
    arrays = {"transposed": np.ascontiguousarray(head.weight.T), "bias": head.bias}
    if kind == INT8_RESCORED:
        arrays["weight"] = np.asarray(head.weight)
        nodes = [*product, *_top("all", _CANDIDATES, "rough", "candidates"), *_rescore(k)]
        arrays["last"] = np.array([-1])
    else:
        nodes = [*product, *_top("all", k, "scores", "ids")]
    model = _model([(arrays, nodes)], head, k)
    if kind == FLOAT:
        _save(model, file)
        return
    plain = file.with_suffix(".fp32.onnx")
    _save(model, plain)
    quantize_dynamic(
        plain,
        file,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=["product"],
        use_external_data_format=True,
    )
    for rest in (plain, plain.with_suffix(".onnx.data")):
        rest.unlink()


def _top(source: str, k: int, values: str, ids: str) -> list:
    """Return a TopK with its k."""
    number = helper.make_tensor(f"{ids}.k", TensorProto.INT64, [1], [k])
    return [
        helper.make_node("Constant", [], [f"{ids}.k"], value=number),
        helper.make_node("TopK", [source, f"{ids}.k"], [values, ids]),
    ]


def _rescore(k: int) -> list:
    """Score the candidates' rows in fp32 and keep the best."""
    make = helper.make_node
    return [
        make("Gather", ["weight", "candidates"], ["rows"]),
        make("Unsqueeze", ["hidden", "last"], ["column"]),
        make("MatMul", ["rows", "column"], ["products"], name="rescore"),
        make("Squeeze", ["products", "last"], ["flat"]),
        make("Gather", ["bias", "candidates"], ["biases"]),
        make("Add", ["flat", "biases"], ["rescored"]),
        *_top("rescored", k, "scores", "places"),
        make("GatherElements", ["candidates", "places"], ["ids"], axis=-1),
    ]


def _few_bits(head: Head) -> list:
    """Quantise rows to 8 bits for onnxruntime's own MatMulNBits, a scale for each row."""
    rows, depth = head.weight.shape
    if depth < 16 or depth & (depth - 1):
        raise ValueError(f"MatMulNBits takes blocks of a power of two, at least 16, not {depth}.")
    scale = np.maximum(np.abs(head.weight).max(axis=1) / 127, 1e-30).astype(np.float32)
    whole = np.round(head.weight / scale[:, None]) + 128
    arrays = {
        "packed": whole.clip(0, 255).astype(np.uint8).reshape(rows, 1, depth),
        "scale": scale,
        "bias": head.bias,
    }
    node = helper.make_node(
        "MatMulNBits",
        ["hidden", "packed", "scale"],
        ["product"],
        domain="com.microsoft",
        K=depth,
        N=rows,
        bits=8,
        block_size=depth,
        accuracy_level=4,
    )
    return [(arrays, [node, helper.make_node("Add", ["product", "bias"], ["all"])])]


def _model(parts: list, head: Head, k: int) -> onnx.ModelProto:
    arrays: dict[str, np.ndarray] = {}
    nodes = []
    for part in parts:
        if isinstance(part, tuple):
            arrays |= part[0]
            nodes += part[1]
        else:
            nodes.append(part)
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "head",
        [tensor("hidden", TensorProto.FLOAT, ["batch", head.weight.shape[1]])],
        [
            tensor("scores", TensorProto.FLOAT, ["batch", k]),
            tensor("ids", TensorProto.INT64, ["batch", k]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def _save(model: onnx.ModelProto, file: Path) -> None:
    onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data")
