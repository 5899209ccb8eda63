"""Graphs with one output layer, written as ONNX text, and ways to run and rewrite them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from qcompile.passes.onnx.output_layer import OutputLayer

N, D = 37, 13
"""Odd on purpose: neither fills a block of the packed layout."""
OPSETS = (9, 11, 13, 17, 21)


def model(
    body: str,
    *,
    opset: int = 17,
    inputs: str = f"float[B, {D}] h",
    outputs: str = f"float[B, {N}] y",
    domains: str = "",
    **weights: np.ndarray,
) -> ir.Model:
    """Parse an ONNX graph; keyword arrays become initializers."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}{domains}]>
    graph ({inputs}) => ({outputs}) {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{number}"
    for name, array in weights.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        proto.graph.initializer.append(
            onnx.TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        )
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def weight(rows: int = N, columns: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def hidden(*shape: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "w": weight().T.copy(),
    "rows": weight(),
    "b": weight(1, N, 1)[0],
    "c": np.abs(weight(1, N, 2))[0] + 1,
    "s": np.float32([3.0]),
}


def with_constants(body: str, **keywords) -> ir.Model:
    """As :func:`model`, with those of the constants that ``body`` names."""
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: array for name, array in CONSTANTS.items() if name in words}
    return model(body, **{**used, **keywords})


def run(m: ir.Model, plugin: bool = False, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Else onnxruntime may quantise the activations too, which the graph does not ask for.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if plugin:
        import qcompile

        options = qcompile.session_options(options)
    content = ir.to_proto(m).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def operators(m: ir.Model) -> list[str]:
    return [node.op_type for node in m.graph]


def signature(m: ir.Model) -> list[tuple]:
    values = [*m.graph.inputs, *m.graph.outputs]
    return [(value.name, str(value.type), str(value.shape)) for value in values]


def check_same(m: ir.Model, expected: list[str], step: OutputLayer | None = None, **feeds) -> None:
    """Rewrite ``m``; operators must be as expected and answers as before, either way of running."""
    before, shape_before = run(m, **feeds), signature(m)
    result = (step or OutputLayer(min_outputs=1))(m)
    assert result.modified, str(result.report)
    assert operators(m) == expected
    assert signature(m) == shape_before
    onnx.checker.check_model(ir.to_proto(m), full_check=True)
    for plugin in (False, True):
        after = run(m, plugin, **feeds)
        for name, values in before.items():
            if values.dtype == np.int64:
                np.testing.assert_array_equal(after[name], values)
            else:
                np.testing.assert_allclose(
                    after[name], values, rtol=2e-3, atol=1e-4, err_msg=f"{name}, plugin={plugin}"
                )
    again = OutputLayer(min_outputs=1)(m)
    assert not again.modified
    assert any("already" in entry.reason for entry in again.report.skipped)
    assert operators(m) == expected


def check_best(m: ir.Model, k: int, expected: list[str], axis: int = -1, **feeds) -> None:
    """Ask for the ``k`` best of the output y; they must be those of all its scores."""
    full = run(m, **feeds)["y"]
    result = OutputLayer(min_outputs=1, top_k=k)(m)
    assert result.modified, str(result.report)
    assert operators(m) == expected
    assert [value.name for value in m.graph.outputs] == ["scores", "ids"]
    onnx.checker.check_model(ir.to_proto(m), full_check=True)
    order = np.take(np.argsort(-full, axis=axis, kind="stable"), np.arange(k), axis)
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        np.testing.assert_array_equal(answer["ids"], order)
        best = np.take_along_axis(full, order, axis)
        np.testing.assert_allclose(answer["scores"], best, rtol=2e-3, atol=1e-4)
