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
    """Insert a standard node before ``anchor`` and return its output."""
    (output,) = insert_outputs_before(graph, anchor, op_type, inputs, attributes, (dtype,))
    return output


def insert_outputs_before(
    graph: ir.Graph,
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Sequence[ir.Attr] = (),
    dtypes: Sequence[ir.DataType | None] = (None,),
) -> Sequence[ir.Value]:
    """Insert a standard node before ``anchor`` and return its outputs, one for each type."""
    node = ir.Node("", op_type, inputs, attributes, num_outputs=len(dtypes))
    node.name = free_name(graph, f"{anchor.name or anchor.outputs[0].name}.{op_type}")
    for number, (output, dtype) in enumerate(zip(node.outputs, dtypes, strict=True)):
        output.name = free_name(graph, f"{node.name}.output{number or ''}")
        if dtype is not None:
            output.type = ir.TensorType(dtype)
    graph.insert_before(anchor, node)
    return node.outputs


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant to the graph under ``name``, or under a name like it that is free."""
    name = free_name(graph, name)
    # ascontiguousarray alone would turn a number into a vector.
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
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


def cancel_transposes(graph: ir.Graph, value: ir.Value) -> None:
    """Leave out two Transposes in a row that undo each other, where ``value`` is between them."""
    first = value.producer()
    if first is None or first.op_type != "Transpose" or value.is_graph_output():
        return
    order = list(first.attributes["perm"].value)
    for second, _ in list(value.uses()):
        if second.op_type != "Transpose" or "perm" not in second.attributes:
            continue
        both = [order[place] for place in second.attributes["perm"].value]
        source = first.inputs[0]
        if both == sorted(both) and source is not None and source.producer() is not None:
            substitute(second.outputs[0], source)
    prune(graph, [first, *(second for second, _ in value.uses())])


def is_read(value: ir.Value) -> bool:
    """Return whether a node reads ``value`` or the graph hands it out."""
    return value.is_graph_output() or bool(value.uses())


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
