"""Small edits of an ONNX graph that every rewrite needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def insert_before(
    graph: ir.Graph,
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Sequence[ir.Attr] = (),
    dtype: ir.DataType | None = None,
) -> ir.Value:
    """Insert a standard node before ``anchor`` and return its first output."""
    node = ir.Node("", op_type, inputs, attributes)
    node.name = free_name(graph, f"{anchor.name or anchor.outputs[0].name}.{op_type}")
    node.outputs[0].name = free_name(graph, f"{node.name}.output")
    if dtype is not None:
        node.outputs[0].type = ir.TensorType(dtype)
    graph.insert_before(anchor, node)
    return node.outputs[0]


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant to the graph under ``name``, or under a name like it that is free."""
    name = free_name(graph, name)
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def substitute(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand wherever ``old`` is read or handed out, under the name of ``old``."""
    name = old.name
    old.name = None
    new.name = name
    new.type = old.type or new.type
    new.shape = old.shape
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def prune(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Remove those of ``nodes`` whose outputs nobody reads, and what only they read."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.graph is not graph or any(
            output.uses() or output.is_graph_output() for output in node.outputs
        ):
            continue
        inputs = {id(value): value for value in node.inputs if value is not None}
        graph.remove(node, safe=True)
        for value in inputs.values():
            producer = value.producer()
            if producer is not None:
                pending.append(producer)
            elif value.is_initializer() and not _is_needed(value):
                graph.initializers.pop(str(value.name))


def free_name(graph: ir.Graph, name: str) -> str:
    """Return ``name``, numbered if a value or node of the graph has it already."""
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    for node in graph.all_nodes():
        taken.add(node.name)
        taken.update(output.name for output in node.outputs)
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _is_needed(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output() or value.is_graph_input()
