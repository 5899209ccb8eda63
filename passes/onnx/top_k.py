"""The k best scores of an output layer in place of all of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import ops
from qcompile.passes.onnx.constants import attribute, constant, present
from qcompile.passes.onnx.edit import (
    free_name,
    initializer,
    insert_before,
    is_read,
    prune,
    substitute,
)
from qcompile.passes.onnx.emit import emit
from qcompile.passes.onnx.layer import LinearLayer
from qcompile.passes.onnx.roles import MOVES
from qcompile.passes.onnx.shapes import Shapes
from qcompile.passes.onnx.tail import Tail

_ELEMENTWISE = ("Cast", "Sigmoid", "Tanh", "Exp", "Log", "QuantizeLinear", "DequantizeLinear")


def fuse_top_k(
    model: ir.Model, layer: LinearLayer, tail: Tail, k: int, shapes: Shapes
) -> tuple[ir.Value, ir.Value]:
    """Compute only the ``k`` best, and repeat on them what ``tail`` did to all scores.

    Where the values are read, a softmax on the way, or its logarithm, becomes an output of the
    operator, the logarithm of the partition function, which the best are normalised by.

    Returns:
        Scores and ids, in the shape that the end of ``tail`` has, with k in place of N.
    """
    opset = model.opset_imports[""]
    distribution = tail.distribution if values_are_read(tail) else None
    if distribution is not None:
        # The float type in which the graph computes probabilities.
        before = tail.nodes[: tail.nodes.index(distribution)]
        casts = [node for node in before if node.op_type == "Cast"]
        if casts:
            layer.dtype_out = ir.DataType(attribute(casts[-1], "to", None))
    else:
        casts = []
    scores, ids = emit(
        model, layer, ops.LINEAR_TOP_K, k, distribution.op_type if distribution else None
    )
    for node, axis in zip(tail.nodes, tail.axes, strict=True):
        if node in casts:
            continue
        if node.op_type in MOVES:
            scores = _repeat(model.graph, node, scores, axis, k, opset)
            ids = _repeat(model.graph, node, ids, axis, k, opset)
        elif node.op_type in _ELEMENTWISE:
            scores = _repeat(model.graph, node, scores, axis, k, opset)
    choice = tail.choice
    if choice is None:
        return scores, ids
    if choice.op_type == "ArgMax":
        if not attribute(choice, "keepdims", 1):
            ids = _drop_axis(model.graph, choice, ids, tail.axis, opset, shapes)
        substitute(choice.outputs[0], ids)
    else:
        substitute(choice.outputs[0], scores)
        if len(choice.outputs) > 1:
            substitute(choice.outputs[1], ids)
    makers = [value.producer() for value in (scores, ids)]
    prune(model.graph, [maker for maker in makers if maker is not None])
    return scores, ids


def values_are_read(tail: Tail) -> bool:
    """Return whether ``tail`` hands out scores or what became of them, not their ids alone."""
    choice = tail.choice
    return choice is None or (choice.op_type == "TopK" and is_read(choice.outputs[0]))


def append_top_k(
    model: ir.Model, output: ir.Value, k: int, axis: int = -1
) -> tuple[ir.Value, ir.Value]:
    """Take the ``k`` best of a graph output with a standard TopK over one axis."""
    graph = model.graph
    inputs, attributes = [output], [ir.AttrInt64("axis", axis)]
    if model.opset_imports[""] < 10:
        attributes.append(ir.AttrInt64("k", k))
    else:
        inputs.append(initializer(graph, f"{output.name}.k", np.asarray([k], np.int64)))
    node = ir.Node("", "TopK", inputs, attributes, num_outputs=2)
    node.name = free_name(graph, f"{output.name}.TopK")
    for value, name in zip(node.outputs, ("values", "indices"), strict=True):
        value.name = free_name(graph, f"{output.name}.{name}")
    graph.append(node)
    return node.outputs[0], node.outputs[1]


def hand_out(
    graph: ir.Graph,
    place: int,
    scores: ir.Value,
    ids: ir.Value,
    k: int,
    axis: int = -1,
    prefix: str = "",
) -> list[str]:
    """Replace one graph output by two, called ``scores`` and ``ids`` where those are free.

    Args:
        graph: the graph.
        place: which output.
        scores: the k best.
        ids: their ids.
        k: how many.
        axis: the axis of the classes in the output, counted from the end; k long from now on.
        prefix: what precedes the new names.
    """
    output = graph.outputs[place]
    dimensions = None if output.shape is None else list(output.shape)
    if dimensions is not None:
        dimensions[axis] = k
    for value, dtype in ((scores, output.dtype or ir.DataType.FLOAT), (ids, ir.DataType.INT64)):
        value.type = ir.TensorType(dtype)
        value.shape = None if dimensions is None else ir.Shape(dimensions)
    graph.outputs[place : place + 1] = [scores, ids]
    for value, name in ((scores, "scores"), (ids, "ids")):
        _give_name(graph, value, f"{prefix}{name}", f"{output.name}_{name}")
    return [str(scores.name), str(ids.name)]


def _give_name(graph: ir.Graph, value: ir.Value, name: str, second_choice: str) -> None:
    fixed = {other.name for other in (*graph.inputs, *graph.outputs) if other is not value}
    if name in fixed or name in graph.initializers:
        name = free_name(graph, second_choice)
    for node in graph.all_nodes():
        for other in node.outputs:
            if other is not value and other.name == name:
                other.name = free_name(graph, f"{name}.all")
    value.name = name


def _repeat(
    graph: ir.Graph, node: ir.Node, value: ir.Value, axis: int, k: int, opset: int
) -> ir.Value:
    """Apply a copy of ``node``, with k in place of the number of classes, to ``value``.

    ``axis`` is that of the classes in what ``node`` hands out, counted from the end.
    """
    inputs = [value, *node.inputs[1:]]
    if node.op_type == "Reshape" and axis == -1:
        inputs[1] = _with_last(graph, node, present(inputs[1]), k, opset)
    elif node.op_type == "Reshape":
        target = constant(inputs[1]).copy()
        if target[axis] != 0:  # 0 copies
            target[axis] = k
        inputs[1] = initializer(graph, f"{node.name}.shape", target)
    attributes = list(node.attributes.values())
    dtype = attribute(node, "to", value.dtype) if node.op_type == "Cast" else value.dtype
    if node.op_type == "DequantizeLinear":
        dtype = present(node.inputs[1]).dtype
    elif node.op_type == "QuantizeLinear":
        dtype = node.outputs[0].dtype
    return insert_before(
        graph, node, node.op_type, inputs, attributes, dtype and ir.DataType(dtype)
    )


def _with_last(graph: ir.Graph, node: ir.Node, shape: ir.Value, k: int, opset: int) -> ir.Value:
    """Return the value of a shape whose last entry is replaced by ``k``."""
    if opset < 10:
        bounds = [ir.AttrInt64s("starts", [0]), ir.AttrInt64s("ends", [-1])]
        leading = insert_before(graph, node, "Slice", [shape], bounds)
    else:
        limits = [
            initializer(graph, f"{node.name}.{name}", np.asarray([number], np.int64))
            for name, number in (("start", 0), ("end", -1))
        ]
        leading = insert_before(graph, node, "Slice", [shape, *limits])
    last = initializer(graph, f"{node.name}.k", np.asarray([k], np.int64))
    return insert_before(graph, node, "Concat", [leading, last], [ir.AttrInt64("axis", 0)])


def _drop_axis(
    graph: ir.Graph, choice: ir.Node, ids: ir.Value, axis: int, opset: int, shapes: Shapes
) -> ir.Value:
    if opset >= 13:
        axes = initializer(graph, f"{choice.name}.axes", np.asarray([axis], np.int64))
        return insert_before(graph, choice, "Squeeze", [ids, axes], dtype=ids.dtype)
    rank = shapes.rank(present(choice.inputs[0]))
    attributes = [ir.AttrInt64s("axes", [axis if rank is None else rank + axis])]
    return insert_before(graph, choice, "Squeeze", [ids], attributes, dtype=ids.dtype)
