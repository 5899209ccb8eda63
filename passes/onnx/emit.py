"""Writes an operator of domain ``qcompile`` into an ONNX graph, with weights and function body."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import ops
from qcompile.passes.onnx.edit import (
    free_name,
    initializer,
    insert_before,
    insert_outputs_before,
)
from qcompile.passes.onnx.functions import function_for
from qcompile.passes.onnx.layer import LinearLayer


def emit(
    model: ir.Model,
    layer: LinearLayer,
    operator: ops.Operator,
    k: int | None = None,
    distribution: str | None = None,
) -> list[ir.Value]:
    """Insert ``operator`` before the nodes of ``layer`` and return its outputs.

    The first output has the type of the layer's scores, and both have their axes; nothing reads the
    outputs yet.

    Args:
        model: gets the operator's function body, too.
        layer: the layer.
        operator: one of :mod:`qcompile.ops`.
        k: for ``LinearTopK``, how many scores.
        distribution: for ``LinearTopK``, what the first output holds in place of scores:
            ``Softmax`` for probabilities, ``LogSoftmax`` for their logarithms.
    """
    graph, anchor = model.graph, layer.product
    inputs = _inputs(graph, anchor, layer, operator)
    names = operator.outputs if distribution else operator.required_outputs
    node = ir.Node(
        ops.DOMAIN,
        operator.name,
        inputs,
        [] if k is None else [ir.AttrInt64("k", k)],
        num_outputs=len(names),
        name=free_name(graph, f"{layer.name}.{operator.name}"),
    )
    for output, name in zip(node.outputs, names, strict=True):
        output.name = free_name(graph, f"{layer.name}.{name}")
        output.type = ir.TensorType(ir.DataType.INT64 if name == "ids" else ir.DataType.FLOAT)
    graph.insert_before(anchor, node)
    _add_function(model, operator, k, distribution is not None)
    scores, *rest = node.outputs[: len(names)]
    if distribution:
        scores = _normalised(graph, anchor, scores, rest.pop(), distribution)
    if layer.dtype_out != ir.DataType.FLOAT:
        scores = _cast(graph, anchor, scores, layer.dtype_out)
    if layer.requantized is not None:
        numbers = [_value(graph, layer, number) for number in layer.requantized]
        integer = ir.tensor(layer.requantized[1]).dtype
        scores = insert_before(graph, anchor, "QuantizeLinear", [scores, *numbers], dtype=integer)
    return [_move_axis(graph, anchor, layer, value, -1, layer.axis) for value in (scores, *rest)]


def _add_function(model: ir.Model, operator: ops.Operator, k: int | None, log_sum: bool) -> None:
    function = function_for(operator, model.opset_imports[""], k, log_sum)
    known = model.functions.get(function.identifier())
    if known is None or len(known.outputs) < len(function.outputs):
        model.functions[function.identifier()] = known = function
    model.opset_imports[ops.DOMAIN] = ops.VERSION
    # onnx wants every output of a function in every node that calls it.
    for node in model.graph:
        if node.op_identifier() == known.identifier() and len(node.outputs) < len(known.outputs):
            node.resize_outputs(len(known.outputs))
            node.outputs[-1].name = free_name(model.graph, f"{node.name}.log_sum")
            node.outputs[-1].type = ir.TensorType(ir.DataType.FLOAT)


def _normalised(
    graph: ir.Graph, anchor: ir.Node, scores: ir.Value, log_sum: ir.Value, distribution: str
) -> ir.Value:
    """Return the logarithms of probabilities, or the probabilities themselves, of scores."""
    logarithms = insert_before(graph, anchor, "Sub", [scores, log_sum], dtype=ir.DataType.FLOAT)
    if distribution == "LogSoftmax":
        return logarithms
    return insert_before(graph, anchor, "Exp", [logarithms], dtype=ir.DataType.FLOAT)


def pack_rows(weight: np.ndarray):
    """Quantise and pack float32 rows [N, d] for the int8 scan."""
    from qcompile.runtime import _core

    return _core.pack_rows(weight)


def _inputs(
    graph: ir.Graph, anchor: ir.Node, layer: LinearLayer, operator: ops.Operator
) -> list[ir.Value]:
    base = layer.weight_name
    bias = np.broadcast_to(layer.bias, layer.weight.shape[:1])
    inputs = [
        _hidden(graph, anchor, layer),
        _held(graph, layer.weight) or initializer(graph, f"{base}.weight", layer.weight),
        _held(graph, bias) or initializer(graph, f"{base}.bias", bias),
    ]
    if len(operator.required) > len(inputs):
        packed = pack_rows(layer.weight)
        names = operator.required[len(inputs) :]
        inputs += [
            initializer(graph, f"{base}.{name}", np.asarray(array))
            for name, array in zip(names, packed, strict=True)
        ]
    return inputs


def _hidden(graph: ir.Graph, anchor: ir.Node, layer: LinearLayer) -> ir.Value:
    hidden = layer.hidden
    quantized = layer.quantized
    if layer.rounded:
        kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
        hidden, *scales = insert_outputs_before(
            graph, anchor, "DynamicQuantizeLinear", [hidden], (), kinds
        )
        quantized = (scales[0], scales[1])
    if quantized is not None:
        numbers = [_value(graph, layer, number) for number in quantized]
        hidden = insert_before(
            graph, anchor, "DequantizeLinear", [hidden, *numbers], dtype=ir.DataType.FLOAT
        )
    if layer.transposed:
        turn = [ir.AttrInt64s("perm", [1, 0])]
        hidden = insert_before(graph, anchor, "Transpose", [hidden], turn)
    hidden = _move_axis(graph, anchor, layer, hidden, layer.axis, -1)
    if layer.dtype != ir.DataType.FLOAT:
        hidden = _cast(graph, anchor, hidden, ir.DataType.FLOAT)
    return hidden


def _move_axis(
    graph: ir.Graph, anchor: ir.Node, layer: LinearLayer, value: ir.Value, start: int, end: int
) -> ir.Value:
    """Move one axis of a value of the layer's rank; both places are counted from the end."""
    if start == end or layer.rank is None:
        return value
    order = list(range(layer.rank))
    order.insert(layer.rank + end, order.pop(start))
    turn = [ir.AttrInt64s("perm", order)]
    return insert_before(graph, anchor, "Transpose", [value], turn, value.dtype)


def _value(graph: ir.Graph, layer: LinearLayer, number: ir.Value | np.ndarray) -> ir.Value:
    if isinstance(number, ir.Value):
        return number
    kind = "scale" if np.issubdtype(number.dtype, np.floating) else "zero_point"
    return initializer(graph, f"{layer.name}.{kind}", number)


def _cast(graph: ir.Graph, anchor: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
    return insert_before(graph, anchor, "Cast", [value], [ir.AttrInt64("to", int(to))], to)


def _held(graph: ir.Graph, array: np.ndarray) -> ir.Value | None:
    """Return an initializer that holds ``array`` as it is, such as tied embeddings."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if (
            tensor is not None
            and tensor.dtype == ir.DataType.FLOAT
            and tuple(tensor.shape) == array.shape
            and not value.is_graph_input()
            and np.array_equal(tensor.numpy(), array)
        ):
            return value
    return None
