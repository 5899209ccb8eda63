"""Spellings of a linear layer whose weights, and perhaps activations, are integers.

- ``Mul(Cast(MatMulInteger(q, W, q_zero, W_zero)), q_scale * W_scale)``, dynamic quantisation, and
  the same with constants in place of the scales;
- ``QLinearMatMul`` and ``QGemm``, static quantisation, whose scores may be integers as well;
- ``DynamicQuantizeMatMul`` and ``MatMulIntegerToFloat``, which onnxruntime fuses from the above;
- ``MatMulNBits``, weights of 2 to 8 bits in blocks.

A weight behind ``DequantizeLinear`` is a constant like any other and needs nothing from here.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.passes.onnx.constants import NoMatch, attribute, constant, describe, present
from qcompile.passes.onnx.layer import LinearLayer
from qcompile.passes.onnx.products import matrix
from qcompile.passes.onnx.shapes import Shapes

_INT8_COMPUTATION = 4
"""``accuracy_level`` from which MatMulNBits rounds its activations to int8."""

_INT8_ERROR = 0.02
"""What that rounding may move a score by, relative to the largest."""


def matmul_integer(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match MatMulInteger, its Cast to float, and the Mul by the product of two scales."""
    weight = _dequantized(node, matrix(_optional(node, 1)).T, None, _optional(node, 3))
    cast = _only_user(node.outputs[0], "Cast")
    if attribute(cast, "to", None) != ir.DataType.FLOAT:
        raise NoMatch(f"{describe(cast)} does not cast to float")
    layer = _layer(node, 0, weight, 1)
    layer.nodes, layer.scores = [node, cast], cast.outputs[0]
    source = layer.hidden.producer()
    if source is None or source.op_type != "DynamicQuantizeLinear":
        # The scales that follow are constants, if they are known at all.
        layer.quantized = (np.ones((), np.float32), _zero_point(node, 2, layer.hidden, shapes))
        return layer
    scaling = _only_user(cast.outputs[0], "Mul")
    product_of_scales = _other(scaling, cast.outputs[0]).producer()
    if product_of_scales is None or product_of_scales.op_type != "Mul":
        raise NoMatch(f"{describe(scaling)} does not multiply by the product of two scales")
    weight_scale = constant(_other(product_of_scales, source.outputs[1]))
    layer.nodes.append(scaling)
    layer.scores = scaling.outputs[0]
    layer.quantized = (source.outputs[1], source.outputs[2])
    layer.scale(layer.per_output(weight_scale, 2))
    return layer


def qlinear_matmul(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match QLinearMatMul(q, q_scale, q_zero, W, W_scale, W_zero, y_scale, y_zero)."""
    if len(node.inputs) != 8:
        raise NoMatch(f"it has {len(node.inputs)} inputs, not 8")
    rows = _dequantized(node, matrix(node.inputs[3]).T, node.inputs[4], node.inputs[5])
    layer = _layer(node, 0, rows, 3)
    layer.quantized = (_scalar(node, 1), _scalar(node, 2))
    _requantize(layer, 6)
    return layer


def qgemm(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match QGemm(q, q_scale, q_zero, W, W_scale, W_zero, bias, y_scale, y_zero)."""
    if not 6 <= len(node.inputs) <= 9:
        raise NoMatch(f"it has {len(node.inputs)} inputs, not 6 to 9")
    weight = matrix(node.inputs[3])
    rows = weight if attribute(node, "transB", 0) else weight.T
    layer = _layer(node, 0, _dequantized(node, rows, node.inputs[4], node.inputs[5]), 3)
    layer.transposed = bool(attribute(node, "transA", 0))
    layer.quantized = (_scalar(node, 1), _scalar(node, 2))
    layer.scale(np.float32(attribute(node, "alpha", 1.0)))
    if _optional(node, 6) is not None:
        # A bias of int32, in units of a product; alpha is among them, by the operator's contract.
        unit = constant(node.inputs[1]).reshape(-1) * constant(node.inputs[4]).reshape(-1)
        bias = constant(node.inputs[6]).astype(np.float32).reshape(-1)
        unit = unit * np.float32(attribute(node, "alpha", 1.0))
        layer.shift(layer.per_output(_broadcast(node, bias, unit), 2))
    if _optional(node, 7) is not None:
        _requantize(layer, 7)
    return layer


def dynamic_quantize_matmul(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match DynamicQuantizeMatMul(hidden, W, W_scale, W_zero, bias)."""
    rows = _dequantized(node, matrix(_optional(node, 1)).T, _optional(node, 2), _optional(node, 3))
    layer = _layer(node, 0, rows, 1)
    layer.rounded = True
    if (bias := _optional(node, 4)) is not None:
        layer.add_bias(bias)
    return layer


def matmul_integer_to_float(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match MatMulIntegerToFloat(q, W, q_scale, W_scale, q_zero, W_zero, bias)."""
    rows = _dequantized(node, matrix(_optional(node, 1)).T, _optional(node, 3), _optional(node, 5))
    layer = _layer(node, 0, rows, 1)
    scale = present(_optional(node, 2))
    layer.quantized = (scale, _zero_point(node, 4, layer.hidden, shapes))
    if (bias := _optional(node, 6)) is not None:
        layer.add_bias(bias)
    return layer


def matmul_n_bits(node: ir.Node, shapes: Shapes) -> LinearLayer:
    """Match MatMulNBits(hidden, W, scales, zero_points, g_idx, bias)."""
    if _optional(node, 4) is not None:
        raise NoMatch("its columns are permuted (g_idx)")
    layer = _layer(node, 0, _unpacked(node), 1)
    if layer.weight.dtype == np.float16:
        layer.dtype = layer.dtype_out = ir.DataType.FLOAT16
    if (bias := _optional(node, 5)) is not None:
        layer.add_bias(bias)
    if attribute(node, "accuracy_level", 0) >= _INT8_COMPUTATION:
        layer.inexact = _INT8_ERROR
    return layer


def _unpacked(node: ir.Node) -> np.ndarray:
    """Return the rows [N, K] of MatMulNBits, in the type of its scales."""
    outputs, depth, bits, size = (
        attribute(node, name, default)
        for name, default in (("N", 0), ("K", 0), ("bits", 4), ("block_size", 0))
    )
    if outputs < 1 or depth < 1 or size < 1 or bits not in (2, 4, 8):
        raise NoMatch(f"N={outputs}, K={depth}, bits={bits}, block_size={size} are no matrix")
    blocks = -(-depth // size)
    packed = constant(_optional(node, 1))
    scales = constant(_optional(node, 2))
    if packed.dtype != np.uint8 or packed.size * 8 != outputs * blocks * size * bits:
        raise NoMatch(f"its weight is {packed.dtype}{list(packed.shape)}, not what it claims")
    if scales.size != outputs * blocks:
        raise NoMatch(f"it has {scales.size} scales for {outputs} x {blocks} blocks")
    zero = _block_zeros(node, outputs, blocks, bits)
    values = _fields(packed.reshape(outputs, -1), bits).reshape(outputs, blocks, size)
    rows = (values.astype(np.float32) - zero) * scales.reshape(outputs, blocks, 1)
    return rows.reshape(outputs, -1)[:, :depth].astype(scales.dtype)


def _block_zeros(node: ir.Node, outputs: int, blocks: int, bits: int) -> np.ndarray:
    value = _optional(node, 3)
    if value is None:
        return np.full((1, 1, 1), 1 << (bits - 1), np.float32)
    array = constant(value)
    if array.dtype == np.uint8:
        if array.size % outputs or array.size * 8 // bits < outputs * blocks:
            raise NoMatch(f"it has {array.size} bytes of zero points")
        array = _fields(array.reshape(outputs, -1), bits)[:, :blocks]
    if array.size != outputs * blocks:
        raise NoMatch(f"it has {array.size} zero points for {outputs} x {blocks} blocks")
    return array.reshape(outputs, blocks, 1).astype(np.float32)


def _fields(packed: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers of ``bits`` bits in each row of bytes, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _dequantized(
    node: ir.Node, rows: np.ndarray, scale: ir.Value | None, zero: ir.Value | None
) -> np.ndarray:
    """Return integer rows [N, d] as float32; scale and zero point are one, or one a row."""
    if rows.dtype not in (np.int8, np.uint8):
        raise NoMatch(f"its weight is {rows.dtype}, not an integer of 8 bits")
    result = rows.astype(np.float32)
    if zero is not None:
        result = result - _a_row(constant(zero).astype(np.float32), len(rows))
    if scale is not None:
        result = result * _a_row(constant(scale).astype(np.float32), len(rows))
    return result


def _a_row(array: np.ndarray, count: int) -> np.ndarray:
    if array.size == 1:
        return array.reshape(())
    if array.size != count:
        raise NoMatch(f"it has {array.size} scales or zero points for {count} outputs")
    return array.reshape(count, 1)


def _broadcast(node: ir.Node, bias: np.ndarray, unit: np.ndarray) -> np.ndarray:
    try:
        return bias * unit
    except ValueError:
        raise NoMatch(f"it has {bias.size} biases for {unit.size} scales") from None


def _layer(node: ir.Node, hidden: int, rows: np.ndarray, weight: int) -> LinearLayer:
    return LinearLayer(
        product=node,
        nodes=[node],
        hidden=present(_optional(node, hidden)),
        weight=rows,
        bias=np.zeros(len(rows), np.float32),
        scores=node.outputs[0],
        weight_value=present(_optional(node, weight)),
    )


def _requantize(layer: LinearLayer, place: int) -> None:
    """Let the scores be handed on as integers, as before."""
    layer.requantized = (_scalar(layer.product, place), _scalar(layer.product, place + 1))
    layer.step = float(layer.requantized[0])


def _scalar(node: ir.Node, place: int) -> np.ndarray:
    """Return a constant scale or zero point as an array of rank 0, which needs no axis."""
    value = present(_optional(node, place))
    array = constant(value)
    if array.size != 1:
        raise NoMatch(f"{value.name!r} is not one number")
    return array.reshape(())


def _zero_point(node: ir.Node, place: int, hidden: ir.Value, shapes: Shapes) -> np.ndarray:
    if _optional(node, place) is not None:
        return _scalar(node, place)
    return np.zeros((), np.int8 if shapes.dtype(hidden) == ir.DataType.INT8 else np.uint8)


def _optional(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


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
