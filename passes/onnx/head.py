"""``LinearTopK`` as an ONNX node and as a whole model, from the index that it reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile import ops
from qcompile.passes.onnx.edit import initializer
from qcompile.passes.onnx.functions import function_for, make_attributes
from qcompile.runtime.index import Index, store

_DENSE_INPUTS = 3
"""Hidden activations, weight and bias come before the arrays of an index."""
_CHOICE_OUTPUTS = 2
"""Scores and ids come before the logarithm of the partition function."""


def top_k_node(
    inputs: Sequence[ir.Value], k: int, index: Index, name: str, *, log_sum: bool = False
) -> ir.Node:
    """Return a node of ``LinearTopK``.

    Args:
        inputs: hidden, weight and bias, then the arrays of ``index``, in order.
        k: how many scores.
        index: mode and attributes.
        name: of the node.
        log_sum: whether it has the output of that name.
    """
    operator = ops.LINEAR_TOP_K
    names = operator.outputs if log_sum else operator.required_outputs
    node = ir.Node(
        ops.DOMAIN,
        operator.name,
        inputs,
        attributes_of(k, index),
        num_outputs=len(names),
        name=name,
    )
    for output, output_name in zip(node.outputs, names, strict=True):
        output.name = output_name
        is_ids = output_name == "ids"
        output.type = ir.TensorType(ir.DataType.INT64 if is_ids else ir.DataType.FLOAT)
    return node


def attributes_of(k: int, index: Index) -> list[ir.Attr]:
    """Return the attributes of a node of ``LinearTopK`` that searches ``index``."""
    values: dict[str, int | float | str] = {"k": k}
    if index.mode != "exact":
        values |= {"mode": index.mode, **index.attributes}
    return make_attributes(values.items())


def use_index(graph: ir.Graph, node: ir.Node, index: Index) -> None:
    """Let a node of ``LinearTopK`` search another index; the arrays of the old one go."""
    k = node.attributes["k"].as_int()
    base = str(node.inputs[1].name) if node.inputs[1] is not None else str(node.name)
    base = base.removesuffix(".weight")
    old = [value for value in node.inputs[_DENSE_INPUTS:] if value is not None]
    new = [
        initializer(graph, f"{base}.{name}", np.asarray(array))
        for name, array in index.arrays.items()
    ]
    node.resize_inputs(_DENSE_INPUTS + len(new))
    for place, value in enumerate(new):
        node.replace_input_with(_DENSE_INPUTS + place, value)
    for value in old:
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(str(value.name), None)
    node.attributes.clear()
    for attribute in attributes_of(k, index):
        node.attributes.add(attribute)


def rescore_of(weight: np.ndarray | ir.TensorProtocol) -> str:
    """Return which of :data:`qcompile.ops.RESCORE` made the input ``weight`` of a node."""
    if weight.shape[0] == 0:
        return "none"
    return "fp32" if weight.dtype in (np.float32, ir.DataType.FLOAT) else "bf16"


def why_not_stored(node: ir.Node) -> str | None:
    """Say why a node of ``LinearTopK`` has to keep its rows as they are, if it has to."""
    held = node.inputs[1]
    if held is None or held.const_value is None:
        return "its weight is no constant"
    if len(held.uses()) > 1 or held.is_graph_output():
        return "its weight is needed in float32 elsewhere in the model"
    if len(node.outputs) > _CHOICE_OUTPUTS:
        return "its probabilities need every score"
    return None


def store_rows(graph: ir.Graph, node: ir.Node, rescore: str) -> None:
    """Let a node of ``LinearTopK`` keep its rows in another form; see ``runtime.index.store``.

    Raises:
        ValueError: it has to keep them; see :func:`why_not_stored`.
        DataError: cells do without their rows, or a weight is beyond bfloat16.
    """
    held = node.inputs[1]
    if held is None or held.const_value is None:
        raise ValueError(why_not_stored(node))
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "exact"
    names = ops.LINEAR_TOP_K.inputs[_DENSE_INPUTS:]
    arrays = {
        name: value.const_value.numpy()
        for name, value in zip(names, node.inputs[_DENSE_INPUTS:], strict=False)
        if value is not None and value.const_value is not None
    }
    weight, base = held.const_value.numpy(), str(held.name)
    rows, index = store(weight, Index(mode, arrays), rescore)
    graph.initializers.pop(base)
    held.name = None
    node.replace_input_with(1, initializer(graph, base, rows))
    for place, (name, array) in enumerate(index.arrays.items(), _DENSE_INPUTS):
        old = node.inputs[place]
        if old is None or array is arrays[name]:
            continue
        old_name = str(old.name)
        graph.initializers.pop(old_name)
        old.name = None
        node.replace_input_with(place, initializer(graph, old_name, np.asarray(array)))


def top_k_model(
    weight: np.ndarray,
    bias: np.ndarray,
    k: int,
    index: Index,
    *,
    opset: int = 18,
    log_sum: bool = False,
) -> ir.Model:
    """Return a model of one output layer: hidden [batch, d] → scores, ids [batch, k].

    Args:
        weight: float32 [N, d], or with ``index`` what :func:`qcompile.runtime.index.store` gives.
        bias: float32 [N].
        k: how many scores.
        index: from :mod:`qcompile.runtime.index`.
        opset: version of the standard operators, for the function body.
        log_sum: whether it hands out log_sum [batch, 1], too.
    """
    hidden = ir.Value(
        name="hidden",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(["batch", weight.shape[1]]),
    )
    graph = ir.Graph(
        [hidden], [], nodes=[], opset_imports={"": opset, ops.DOMAIN: ops.VERSION}, name="head"
    )
    arrays = {"weight": weight, "bias": bias, **index.arrays}
    values = [initializer(graph, name, np.asarray(array)) for name, array in arrays.items()]
    node = top_k_node([hidden, *values], k, index, "head", log_sum=log_sum)
    graph.append(node)
    for output in node.outputs:
        output.shape = ir.Shape(["batch", 1 if output.name == "log_sum" else k])
        graph.outputs.append(output)
    function = function_for(ops.LINEAR_TOP_K, opset, k, log_sum, rescore_of(weight))
    return ir.Model(graph, ir_version=9, functions=[function])
