"""Spellings of a linear layer in float numbers.

- ``Gemm(hidden, W, b)`` with alpha, beta, transA and transB;
- ``MatMul(hidden, W)``, and ``FusedMatMul`` of onnxruntime;
- ``MatMul(W, hidden)`` with the classes on the second last axis;
- ``Einsum`` of hidden activations and a matrix, ``"btd,nd->btn"``;
- ``Conv(hidden, W, b)`` with a kernel of one point, the classes on the axis of the channels.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.passes.onnx.constants import NoMatch, attribute, constant, is_constant, present
from qcompile.passes.onnx.layer import FLOATS, LinearLayer
from qcompile.passes.onnx.shapes import Shapes


def matrix(value: ir.Value | None) -> np.ndarray:
    """Return the constant matrix that a layer multiplies with.

    Raises:
        NoMatch: it is no constant matrix.
    """
    try:
        array = constant(value)
    except NoMatch as reason:
        raise NoMatch(f"its weight is not constant: {reason}") from None
    if array.ndim != 2 or not array.size:
        raise NoMatch(
            f"its weight has shape {list(array.shape)}, not two dimensions of at least one"
        )
    return array


def gemm(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match Gemm(hidden, W, b)."""
    weight = matrix(_input(node, 1))
    rows = weight if attribute(node, "transB", 0) else weight.T
    layer = _layer(node, 0, 1, rows)
    layer.transposed = bool(attribute(node, "transA", 0))
    layer.scale(np.float32(attribute(node, "alpha", 1.0)))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        layer.add_bias(node.inputs[2], attribute(node, "beta", 1.0))
    return layer


def matmul(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match MatMul(hidden, W) and MatMul(W, hidden)."""
    left, right = _input(node, 0), _input(node, 1)
    if not is_constant(right) and is_constant(left):
        return _left(node, matrix(left), shapes)
    return _layer(node, 0, 1, matrix(right).T)


def fused_matmul(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match FusedMatMul(hidden, W) of onnxruntime, which transposes and scales on its own."""
    if any(attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        raise NoMatch("it transposes its hidden activations")
    weight = matrix(_input(node, 1))
    layer = _layer(node, 0, 1, weight if attribute(node, "transB", 0) else weight.T)
    layer.scale(np.float32(attribute(node, "alpha", 1.0)))
    return layer


def einsum(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match Einsum of hidden activations [..., d] and a matrix, in either order."""
    if len(node.inputs) != 2:
        raise NoMatch(f"it has {len(node.inputs)} operands")
    place = 1 if is_constant(node.inputs[1]) else 0
    weight = matrix(node.inputs[place])
    equation = str(attribute(node, "equation", "")).replace(" ", "").replace("...", ".")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or len(terms[place]) != 2:
        raise NoMatch(f"its equation {equation!r} is not hidden activations times a matrix")
    hidden, names = terms[1 - place], terms[place]
    depth, outputs = hidden[-1:], result[-1:]
    plain = hidden[:-1] == result[:-1] and len(set(hidden + outputs)) == len(hidden) + 1
    if not plain or set(names) != {depth, outputs}:
        raise NoMatch(f"its equation {equation!r} is not hidden activations times a matrix")
    return _layer(node, 1 - place, place, weight if names == outputs + depth else weight.T)


def conv(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match Conv(hidden [B, d, …], W [N, d, 1, …], b), whose scores are [B, N, …]."""
    try:
        weight = constant(_input(node, 1))
    except NoMatch as reason:
        raise NoMatch(f"its weight is not constant: {reason}") from None
    if weight.ndim < 3 or not weight.size or any(size != 1 for size in weight.shape[2:]):
        raise NoMatch(f"its kernel {list(weight.shape[2:])} covers more than one point")
    if attribute(node, "group", 1) != 1:
        raise NoMatch("its channels are in groups")
    moves = any(size != 1 for size in attribute(node, "strides", ()))
    if moves or any(attribute(node, "pads", ())):
        raise NoMatch("it has strides or pads")
    layer = _layer(node, 0, 1, weight.reshape(weight.shape[:2]))
    layer.axis, layer.rank = 1 - weight.ndim, weight.ndim
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        layer.add_bias(node.inputs[2])
    return layer


def _left(node: ir.Node, weight: np.ndarray, shapes: Shapes) -> LinearLayer:
    layer = _layer(node, 1, 0, weight)
    layer.rank = shapes.rank(layer.hidden)
    if layer.rank is None or layer.rank < 2:
        raise NoMatch("its weight is the left operand, and the rank of the right one is not known")
    layer.axis = -2
    return layer


def _layer(node: ir.Node, hidden: int, weight: int, rows: np.ndarray) -> LinearLayer:
    if rows.dtype not in FLOATS:
        known = ", ".join(str(dtype) for dtype in FLOATS)
        raise NoMatch(f"its weight is {rows.dtype}; {known} are rewritten")
    dtype = FLOATS[rows.dtype]
    return LinearLayer(
        product=node,
        nodes=[node],
        hidden=_input(node, hidden),
        weight=rows,
        bias=np.zeros(len(rows), np.float32),
        scores=node.outputs[0],
        weight_value=_input(node, weight),
        dtype=dtype,
        dtype_out=dtype,
    )


def _input(node: ir.Node, place: int) -> ir.Value:
    if place >= len(node.inputs):
        raise NoMatch(f"it has fewer than {place + 1} inputs")
    return present(node.inputs[place])
