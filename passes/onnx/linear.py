"""Recognises one linear layer in any of its spellings, and what is folded into it.

The spellings are in :mod:`qcompile.passes.onnx.products` and
:mod:`qcompile.passes.onnx.quantized`; ``Mul``, ``Div``, ``Sub`` and ``Add`` of constants behind one
of them become part of the layer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qcompile.passes.onnx import products, quantized
from qcompile.passes.onnx.constants import NoMatch, constant, present
from qcompile.passes.onnx.layer import LinearLayer
from qcompile.passes.onnx.shapes import Shapes

_MICROSOFT = "com.microsoft"

SPELLINGS: dict[tuple[str, str], Callable[[ir.Node, Shapes], LinearLayer]] = {
    ("", "Gemm"): products.gemm,
    ("", "MatMul"): products.matmul,
    ("", "Einsum"): products.einsum,
    ("", "Conv"): products.conv,
    ("", "MatMulInteger"): quantized.matmul_integer,
    ("", "QLinearMatMul"): quantized.qlinear_matmul,
    (_MICROSOFT, "FusedMatMul"): products.fused_matmul,
    (_MICROSOFT, "QGemm"): quantized.qgemm,
    (_MICROSOFT, "DynamicQuantizeMatMul"): quantized.dynamic_quantize_matmul,
    (_MICROSOFT, "MatMulIntegerToFloat"): quantized.matmul_integer_to_float,
    (_MICROSOFT, "MatMulNBits"): quantized.matmul_n_bits,
}
"""Domain and type of the operators that a linear layer begins with."""


def spelling(node: ir.Node) -> Callable[[ir.Node, Shapes], LinearLayer] | None:
    """Return what matches a layer that begins at ``node``; ``None`` where none does.

    The matcher raises NoMatch, with the reason. It does not look at the numbers yet.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    return SPELLINGS.get((domain, node.op_type))


def absorb(layer: LinearLayer, shapes: Shapes) -> None:
    """Fold every constant Add, Sub, Mul or Div behind the scores into the layer."""
    while _absorb_one(layer, shapes):
        pass


def settle(layer: LinearLayer) -> None:
    """Check the numbers of a layer that will be replaced, and lay them out in rows.

    Raises:
        NoMatch: a weight or bias is NaN or infinite.
    """
    layer.weight = np.ascontiguousarray(layer.weight, np.float32)
    layer.bias = np.ascontiguousarray(layer.bias, np.float32)
    if not (np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()):
        raise NoMatch(f"its weight {layer.weight_name!r} or its bias holds NaN or infinity")


def _absorb_one(layer: LinearLayer, shapes: Shapes) -> bool:
    scores = layer.scores
    if layer.requantized or scores.is_graph_output() or len(scores.uses()) != 1:
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
        array = layer.per_output(constant(other), shapes.rank(scores))
    except NoMatch:
        return False
    if node.op_type in ("Add", "Sub"):
        layer.shift(array if node.op_type == "Add" else -array)
    else:
        with np.errstate(divide="ignore"):  # infinities are refused later, by name
            layer.scale(array if node.op_type == "Mul" else 1 / array.astype(np.float32))
    layer.nodes.append(node)
    layer.scores = node.outputs[0]
    return True
