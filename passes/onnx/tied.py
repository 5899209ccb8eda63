"""Lets embeddings of a shorter float type read the float32 rows of the output layer they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.passes.onnx.constants import attribute
from qcompile.passes.onnx.edit import insert_before, substitute
from qcompile.passes.onnx.layer import FLOATS

_SHORTER = frozenset(FLOATS.values()) - {ir.DataType.FLOAT}


def share_rows(graph: ir.Graph, held: ir.Value, rows: ir.Value) -> None:
    """Take ``held`` out of ``graph`` if whole rows of it are read alone, which ``rows`` holds.

    A float32 holds every float16 and bfloat16: the rows are cast back after they were read, and
    are what they were.

    Args:
        graph: the graph.
        held: the initializer that the layer's weight was folded from.
        rows: float32 [N, d], the weight that the layer reads now.
    """
    if held.dtype not in _SHORTER or held.is_graph_input() or held.is_graph_output():
        return
    gathers = [use.node for use in held.uses()]
    if not gathers or not all(_reads_rows(g, held) for g in gathers):
        return
    if held.const_value is None or rows.const_value is None:
        return
    if not _equal(held.const_value.numpy(), rows.const_value.numpy()):
        return
    for gather in gathers:
        to = [ir.AttrInt64("to", int(held.dtype))]
        (before,) = gather.outputs
        long = insert_before(
            graph, gather, "Gather", [rows, gather.inputs[1]], list(gather.attributes.values())
        )
        substitute(before, insert_before(graph, gather, "Cast", [long], to, held.dtype))
        graph.remove(gather, safe=True)
    del graph.initializers[str(held.name)]


def _reads_rows(node: ir.Node, held: ir.Value) -> bool:
    plain = (node.op_type, node.domain) == ("Gather", "") and attribute(node, "axis", 0) == 0
    return plain and node.graph is held.graph and node.inputs[0] is held


def _equal(short: np.ndarray, long: np.ndarray) -> bool:
    return short.shape == long.shape and np.array_equal(short.astype(np.float32), long)
