"""Values of an ONNX graph that are the same on every run, as NumPy arrays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_LONGEST_CHAIN = 16
"""Nodes between a constant and its use; also ends the walk through a cycle of a broken file."""


class NoMatch(Exception):  # noqa: N818 - an answer, not an error: it carries the reason
    """Why a pattern does not apply."""


def constant(value: ir.Value | None, depth: int = 0) -> np.ndarray:
    """Return the array that ``value`` holds on every run, computing what leads to it.

    Looks through Identity, Transpose, Cast between float types and DequantizeLinear.

    Raises:
        NoMatch: the value depends on a graph input, or is computed by another operator.
    """
    value = present(value)
    if value.is_initializer():
        return _initializer(value)
    node = value.producer()
    if node is None:
        raise NoMatch(f"{value.name!r} is a graph input, not a constant")
    if node.domain in ("", "ai.onnx") and depth < _LONGEST_CHAIN:
        if node.op_type == "Constant":
            return _constant_node(node)
        if node.op_type in _FOLDABLE:
            return _FOLDABLE[node.op_type](node, depth + 1)
    raise NoMatch(f"{value.name!r} is computed by {describe(node)}, not a constant")


def present(value: ir.Value | None) -> ir.Value:
    """Return an input that is not left out.

    Raises:
        NoMatch: it is.
    """
    if value is None:
        raise NoMatch("an input is missing")
    return value


def is_constant(value: ir.Value | None) -> bool:
    """Return whether :func:`constant` has an answer."""
    try:
        constant(value)
    except NoMatch:
        return False
    return True


def describe(node: ir.Node) -> str:
    """Return the operator type and name of ``node``, for messages."""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return f"{domain}{node.op_type} {node.name!r}"


def attribute(node: ir.Node, name: str, default):
    """Return an attribute's value, or ``default`` where it is absent."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def source_initializer(value: ir.Value) -> ir.Value | None:
    """Return the initializer that a constant was folded from, ``None`` for a Constant node."""
    for _ in range(_LONGEST_CHAIN):
        if value.is_initializer():
            return value
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return None


def _initializer(value: ir.Value) -> np.ndarray:
    if value.is_graph_input():
        raise NoMatch(
            f"{value.name!r} is a graph input with a default value, which a caller may replace; "
            "take it out of the graph's inputs if it is a constant"
        )
    if value.const_value is None:
        raise NoMatch(f"initializer {value.name!r} has no data")
    return value.const_value.numpy()


def _constant_node(node: ir.Node) -> np.ndarray:
    for name, kind in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in node.attributes:
            return np.asarray(node.attributes[name].value, kind)
    tensor = attribute(node, "value", None)
    if tensor is None:
        raise NoMatch(f"{describe(node)} holds no tensor of numbers")
    return tensor.numpy()


def _identity(node: ir.Node, depth: int) -> np.ndarray:
    return constant(node.inputs[0], depth)


def _transpose(node: ir.Node, depth: int) -> np.ndarray:
    array = constant(node.inputs[0], depth)
    permutation = attribute(node, "perm", tuple(reversed(range(array.ndim))))
    if sorted(permutation) != list(range(array.ndim)):
        raise NoMatch(f"{describe(node)} has perm {tuple(permutation)} for rank {array.ndim}")
    return array.transpose(permutation)


_FLOATS = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


def _cast(node: ir.Node, depth: int) -> np.ndarray:
    target = attribute(node, "to", None)
    if target not in _FLOATS:
        raise NoMatch(f"{describe(node)} casts to something other than float or float16")
    return constant(node.inputs[0], depth).astype(_FLOATS[target])


def _dequantize(node: ir.Node, depth: int) -> np.ndarray:
    quantized = constant(node.inputs[0], depth)
    scale = constant(node.inputs[1], depth).astype(np.float32)
    axis = attribute(node, "axis", 1)
    size = attribute(node, "block_size", 0)
    difference = quantized.astype(np.float32)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = constant(node.inputs[2], depth).astype(np.float32)
        difference = difference - _spread(node, zero, quantized.shape, axis, size)
    return difference * _spread(node, scale, quantized.shape, axis, size)


def _spread(node: ir.Node, array: np.ndarray, shape, axis: int, size: int) -> np.ndarray:
    """Broadcast a scale or zero point: one per tensor, per slice of an axis, or per block."""
    if array.size == 1:
        return array.reshape(())
    rank = len(shape)
    if not -rank <= axis < rank:
        raise NoMatch(f"{describe(node)} has axis {axis} for rank {rank}")
    axis %= rank
    if size > 0 and array.ndim == rank:
        # A block covers `size` entries along `axis`; the last one may be cut short.
        array = np.take(
            array, np.minimum(np.arange(shape[axis]) // size, array.shape[axis] - 1), axis
        )
    elif array.shape == (shape[axis],):
        array = array.reshape([-1 if i == axis else 1 for i in range(rank)])
    try:
        np.broadcast_shapes(array.shape, tuple(shape))
    except ValueError:
        raise NoMatch(f"{describe(node)} has a scale of shape {array.shape} for {shape}") from None
    return array


_FOLDABLE = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
}
