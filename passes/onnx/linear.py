"""Recognises one linear layer: ``scores = hidden @ weight.T + bias`` in any of its spellings.

- ``Gemm(hidden, W, b)`` with alpha, beta, transA and transB;
- ``MatMul(hidden, W)``, and ``Add`` of a bias in either order;
- ``Mul``, ``Div``, ``Sub`` and ``Add`` of further constants, which are folded in;
- ``Mul(Cast(MatMulInteger(q, W)), scales)``, onnxruntime's dynamic quantisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.passes.onnx.constants import (
    NoMatch,
    attribute,
    constant,
    describe,
    is_constant,
    present,
    source_initializer,
)
from qcompile.passes.onnx.shapes import Shapes

PRODUCTS = ("Gemm", "MatMul", "MatMulInteger")
"""Operators that a linear layer begins with."""

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))


@dataclass
class LinearLayer:
    """A linear layer of a graph, its constants folded.

    Args:
        product: the node that multiplies.
        nodes: every node that the layer replaces, in graph order.
        hidden: value of shape [..., d]; [d, M] where ``transposed``.
        transposed: whether the hidden activations come transposed (Gemm's transA).
        quantized: (scale, zero point) of the hidden activations where they are integers.
        weight: float32 [N, d].
        bias: float32 [N].
        scores: value of shape [..., N].
        weight_value: what the weight was folded from.
        dtype: float type of the hidden activations.
        dtype_out: float type of the scores.
    """

    product: ir.Node
    nodes: list[ir.Node]
    hidden: ir.Value
    weight: np.ndarray
    bias: np.ndarray
    scores: ir.Value
    weight_value: ir.Value
    transposed: bool = False
    quantized: tuple[ir.Value, ir.Value] | None = None
    dtype: ir.DataType = ir.DataType.FLOAT
    dtype_out: ir.DataType = ir.DataType.FLOAT

    @property
    def name(self) -> str:
        """Name for messages: the product's node name."""
        return self.product.name or self.scores.name or ""

    @property
    def weight_name(self) -> str:
        """Name of the initializer that holds the weight, or of the value that does."""
        source = source_initializer(self.weight_value)
        return (source or self.weight_value).name or self.name

    @property
    def kind(self) -> str:
        """Operator types that the layer is spelt with."""
        return "+".join(node.op_type for node in self.nodes)


def constant_rows(product: ir.Node) -> np.ndarray:
    """Return the constant weight [N, d] of ``product``.

    Raises:
        NoMatch: it is no constant matrix.
    """
    if len(product.inputs) < 2:
        raise NoMatch("it has fewer than two inputs")
    left, right = product.inputs[:2]
    try:
        array = constant(right)
    except NoMatch as reason:
        if is_constant(left):
            raise NoMatch("its weight is the left operand; only the right one is read") from None
        raise NoMatch(f"its weight is not constant: {reason}") from None
    if array.ndim != 2 or not array.size:
        raise NoMatch(
            f"its weight has shape {list(array.shape)}, not two dimensions of at least one"
        )
    return array if product.op_type == "Gemm" and attribute(product, "transB", 0) else array.T


def match(product: ir.Node, shapes: Shapes) -> LinearLayer:
    """Return the linear layer that begins at ``product``; its numbers are not looked at yet.

    Raises:
        NoMatch: with the reason.
    """
    layer = _integer(product) if product.op_type == "MatMulInteger" else _product(product)
    while _absorb(layer, shapes):
        pass
    return layer


def settle(layer: LinearLayer) -> None:
    """Check the numbers of a layer that will be replaced, and lay them out in rows.

    Raises:
        NoMatch: a weight or bias is NaN or infinite.
    """
    if not (np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()):
        raise NoMatch(f"its weight {layer.weight_name!r} or its bias holds NaN or infinity")
    layer.weight = np.ascontiguousarray(layer.weight, np.float32)
    layer.bias = np.ascontiguousarray(layer.bias, np.float32)


def _product(product: ir.Node) -> LinearLayer:
    rows = constant_rows(product)
    if rows.dtype not in _FLOATS:
        raise NoMatch(f"its weight is {rows.dtype}; float32 and float16 are rewritten")
    dtype = ir.DataType.FLOAT16 if rows.dtype == np.float16 else ir.DataType.FLOAT
    layer = LinearLayer(
        product=product,
        nodes=[product],
        hidden=present(product.inputs[0]),
        weight=rows,
        bias=np.zeros(rows.shape[0], np.float32),
        scores=product.outputs[0],
        weight_value=present(product.inputs[1]),
        dtype=dtype,
        dtype_out=dtype,
    )
    if product.op_type == "Gemm":
        _gemm(layer)
    return layer


def _gemm(layer: LinearLayer) -> None:
    node = layer.product
    layer.transposed = bool(attribute(node, "transA", 0))
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    _scale(layer, np.float32(alpha))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        try:
            bias = constant(node.inputs[2])
        except NoMatch as reason:
            raise NoMatch(f"its bias is not constant: {reason}") from None
        _shift(layer, _per_output(bias, layer, 2) * np.float32(beta))


def _integer(product: ir.Node) -> LinearLayer:
    """Match Mul(Cast(MatMulInteger(q, W, q_zero, W_zero)), scale_q * scale_W)."""
    weight = constant_rows(product).T.astype(np.float32)
    zero_point = product.inputs[3] if len(product.inputs) > 3 else None
    if zero_point is not None:
        weight = weight - constant(zero_point).astype(np.float32)
    cast = _only_user(product.outputs[0], "Cast")
    if attribute(cast, "to", None) != ir.DataType.FLOAT:
        raise NoMatch(f"{describe(cast)} does not cast to float")
    scaling = _only_user(cast.outputs[0], "Mul")
    product_of_scales = _other(scaling, cast.outputs[0]).producer()
    source = present(product.inputs[0]).producer()
    if source is None or source.op_type != "DynamicQuantizeLinear":
        raise NoMatch("its hidden activations are integers not made by DynamicQuantizeLinear")
    if product_of_scales is None or product_of_scales.op_type != "Mul":
        raise NoMatch(f"{describe(scaling)} does not multiply by the product of two scales")
    weight_scale = constant(_other(product_of_scales, source.outputs[1]))
    layer = LinearLayer(
        product=product,
        nodes=[product, cast, scaling],
        hidden=source.outputs[0],
        quantized=(source.outputs[1], source.outputs[2]),
        weight=weight.T,
        bias=np.zeros(weight.shape[1], np.float32),
        scores=scaling.outputs[0],
        weight_value=present(product.inputs[1]),
    )
    _scale(layer, _per_output(weight_scale, layer, 2))
    return layer


def _absorb(layer: LinearLayer, shapes: Shapes) -> bool:
    """Fold one constant Add, Sub, Mul or Div behind the scores into the layer."""
    scores = layer.scores
    if scores.is_graph_output() or len(scores.uses()) != 1:
        return False
    (node, index) = next(iter(scores.uses()))
    if node.graph is not layer.product.graph or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return False
    if index == 1 and node.op_type in ("Sub", "Div"):
        return False
    other = present(node.inputs[1 - index])
    try:
        array = _per_output(constant(other), layer, shapes.rank(scores))
    except NoMatch:
        return False
    if node.op_type in ("Add", "Sub"):
        _shift(layer, array if node.op_type == "Add" else -array)
    else:
        _scale(layer, array if node.op_type == "Mul" else np.float32(1) / array.astype(np.float32))
    layer.nodes.append(node)
    layer.scores = node.outputs[0]
    return True


def _scale(layer: LinearLayer, factor: np.ndarray | np.float32) -> None:
    if np.all(factor == 1):
        return
    factor = np.asarray(factor, np.float32)
    layer.weight = layer.weight * (factor[:, None] if factor.ndim else factor)
    layer.bias = layer.bias * factor


def _shift(layer: LinearLayer, offset: np.ndarray) -> None:
    layer.bias = layer.bias.astype(np.float32) + offset


def _per_output(array: np.ndarray, layer: LinearLayer, rank: int | None) -> np.ndarray:
    """Return a constant operand as one number per output, or one for all."""
    if array.dtype not in _FLOATS:
        raise NoMatch(f"a constant is {array.dtype}")
    outputs = layer.weight.shape[0]
    if array.size not in (1, outputs) or (array.size > 1 and array.shape[-1] != outputs):
        raise NoMatch(f"a constant of shape {list(array.shape)} is not one number per output")
    if array.ndim > 1 and (rank is None or array.ndim > rank):
        raise NoMatch(f"a constant of rank {array.ndim} may add dimensions to the scores")
    return array.reshape(-1 if array.size > 1 else ())


def _only_user(value: ir.Value, op_type: str) -> ir.Node:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        raise NoMatch(f"{value.name!r} has several uses")
    node = next(iter(uses)).node
    if node.op_type != op_type:
        raise NoMatch(f"{value.name!r} feeds {describe(node)}, not {op_type}")
    return node


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    """Return the operand of a binary ``node`` that is not ``value``."""
    if value not in node.inputs or len(node.inputs) != 2:
        raise NoMatch(f"{describe(node)} does not read {value.name!r}")
    return present(node.inputs[1] if node.inputs[0] is value else node.inputs[0])
