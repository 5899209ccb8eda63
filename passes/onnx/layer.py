"""One linear layer, however it was spelt: ``scores = hidden @ weight.T + bias``."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcompile.passes.onnx.constants import NoMatch, constant, source_initializer

FLOATS: dict[np.dtype, ir.DataType] = {
    np.dtype(np.float32): ir.DataType.FLOAT,
    np.dtype(np.float16): ir.DataType.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): ir.DataType.BFLOAT16,
}
"""Float types of weights that are read."""


@dataclass
class LinearLayer:
    """A linear layer of a graph, its constants folded.

    Args:
        product: the node that multiplies.
        nodes: every node that the layer replaces, in graph order.
        hidden: value of shape [..., d]; [d, M] where ``transposed``.
        weight: float32 [N, d].
        bias: float32 [N].
        scores: value of shape [..., N].
        weight_value: what the weight was folded from.
        axis: counted from the end, where ``hidden`` has d and ``scores`` has N: -1, or that of the
            channels of a convolution. The comments on shapes are for -1.
        rank: number of dimensions of ``hidden``, known where ``axis`` is not -1.
        transposed: whether the hidden activations come transposed (Gemm's transA).
        quantized: (scale, zero point) of the hidden activations where they are integers.
        rounded: whether the layer rounds its hidden activations to 8 bits, for each call anew.
        requantized: (scale, zero point) of the scores where they are handed on as integers.
        step: the step of that rounding, else 0.
        inexact: relative error that the layer itself makes, such as one that computes in int8.
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
    axis: int = -1
    rank: int | None = None
    transposed: bool = False
    quantized: tuple[ir.Value | np.ndarray, ir.Value | np.ndarray] | None = None
    rounded: bool = False
    requantized: tuple[np.ndarray, np.ndarray] | None = None
    step: float = 0.0
    inexact: float = 0.0
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

    def scale(self, factor: np.ndarray | np.float32) -> None:
        """Multiply the scores by one number, or by one for each output."""
        if np.all(factor == 1):
            return
        factor = np.asarray(factor, np.float32)
        with np.errstate(all="ignore"):  # what is not finite is refused later, by name
            self.weight = self.weight * (factor[:, None] if factor.ndim else factor)
            self.bias = self.bias * factor

    def shift(self, offset: np.ndarray) -> None:
        """Add one number to the scores, or one for each output."""
        self.bias = self.bias.astype(np.float32) + offset.astype(np.float32)

    def per_output(self, array: np.ndarray, rank: int | None) -> np.ndarray:
        """Return a constant operand of the scores as one number per output, or one for all.

        Args:
            array: the operand.
            rank: number of dimensions of the scores, if known.

        Raises:
            NoMatch: it is something else.
        """
        if array.dtype not in FLOATS:
            raise NoMatch(f"a constant is {array.dtype}")
        outputs = len(self.weight)
        along = array.ndim >= -self.axis and array.shape[self.axis] == outputs
        if array.size not in (1, outputs) or (array.size > 1 and not along):
            raise NoMatch(f"a constant of shape {list(array.shape)} is not one number per output")
        if array.ndim > 1 and (rank is None or array.ndim > rank):
            raise NoMatch(f"a constant of rank {array.ndim} may add dimensions to the scores")
        return array.reshape(-1 if array.size > 1 else ())

    def add_bias(self, value: ir.Value, factor: float = 1.0) -> None:
        """Add a constant vector [N], or one number, to the scores.

        Raises:
            NoMatch: ``value`` is neither.
        """
        try:
            bias = constant(value)
        except NoMatch as reason:
            raise NoMatch(f"its bias is not constant: {reason}") from None
        outputs = len(self.weight)
        if (
            bias.dtype not in FLOATS
            or bias.size not in (1, outputs)
            or (bias.size > 1 and bias.shape[-1] != outputs)
        ):
            raise NoMatch(
                f"its bias is {bias.dtype}{list(bias.shape)}, not one number for each output"
            )
        self.shift(bias.reshape(-1 if bias.size > 1 else ()) * np.float32(factor))
