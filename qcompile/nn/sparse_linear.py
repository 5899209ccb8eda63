"""A first layer for sparse examples: bags of words, clicks, one-hot fields, by the million."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qcompile.errors import ConfigurationError, DataError
from qcompile.nn.row_sparse import RowSparse, late_rows, row_gradient
from qcompile.runtime import _core
from qcompile.uncompiled import uncompiled

__all__ = ["SparseLinear"]

_STORED = (torch.float32, torch.bfloat16)


class SparseLinear(RowSparse):
    """``features · weight + bias`` for a batch in compressed sparse rows.

    The weight has a row for each feature, as an embedding has; a batch reads and trains only the
    rows of features that occur in it, so the cost does not grow with F. Its gradient is
    row-sparse: train with an optimiser of :mod:`qcompile.optim`, or with ``torch.optim.SGD``,
    ``SparseAdam`` or ``Adagrad``. No gradient flows to the features.

    Features may repeat within an example (their values add up) and come in any order; an example
    may have none. Results are the same for any number of threads.

    ``reset_parameters`` draws from U(−1/√d, 1/√d): ``torch.nn.Linear``'s bound 1/√F keeps the
    variance where all F inputs have unit variance, but a sparse example has a Euclidean norm of
    about 1 (TF-IDF) to √75 (75 words), whatever F. With Adam the bound hardly matters from 1/d to
    3/√d (equal precision epoch by epoch on synthetic data), and 1 is too much. The bias starts at
    zero.

    Args:
        in_features: F, the number of features.
        out_features: d.
        bias: whether to add one.
        device: of the parameters; computing needs the CPU.
        dtype: of the weight, float32 or bfloat16; the bias is float32, and so is all arithmetic.

    Attributes:
        weight: Parameter [F, d], a row for each feature.
        bias: Parameter [d] or None.

    Raises:
        ConfigurationError: a size or the type is out of range.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.float32
        if not 0 < in_features <= 2**31 or out_features < 1 or dtype not in _STORED:
            raise ConfigurationError(
                f"SparseLinear: in_features must be in [1, 2^31], out_features at least 1 and "
                f"dtype float32 or bfloat16, got {in_features!r}, {out_features!r} and {dtype}."
            )
        self.in_features, self.out_features = in_features, out_features
        self._init_rows()
        self.weight = nn.Parameter(
            torch.empty(in_features, out_features, device=device, dtype=dtype)
        )
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight afresh and set the bias to zero."""
        bound = 1 / math.sqrt(self.out_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, features: Any) -> Tensor:
        """Multiply a batch.

        Args:
            features: real [B, F]: a scipy.sparse CSR matrix or array, or a torch tensor with the
                layout ``sparse_csr``; float32 is not copied. A dense tensor [..., F] is multiplied
                as by ``torch.nn.Linear``, for tracing and export.

        Returns:
            float32 [B, d].

        Raises:
            DataError: the batch is of another kind, shape or type, an index is out of range, or a
                value is not finite; row and feature are named.
        """
        if isinstance(features, torch.fx.Proxy):
            return nn.functional.linear(features, self.weight.t(), self.bias)  # type: ignore[arg-type]
        if isinstance(features, Tensor) and features.layout == torch.strided:
            return nn.functional.linear(features, self.weight.t().to(features.dtype), self.bias)
        if self.weight.device.type != "cpu" or self.weight.dtype not in _STORED:
            raise DataError(
                f"SparseLinear: weight is {self.weight.dtype} on {self.weight.device}, but sparse "
                f"batches need float32 or bfloat16 on the CPU."
            )
        arrays = _compressed_rows(features, self.in_features)
        try:
            batch = _core.CsrProduct(*arrays, self.in_features)
        except DataError as error:
            raise DataError(f"SparseLinear: features: {error}; correct or drop the row.") from None
        return self._product(batch)

    @uncompiled
    def _product(self, batch: Any) -> Tensor:
        fused = self.training and torch.is_grad_enabled()
        updates = self.row_updates if fused else None
        result: Tensor = _Product.apply(self.weight, self.bias, batch, self.sparse_grad, updates)
        return result

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, dtype={self.weight.dtype}"
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, batch: Any, sparse_grad: bool, updates: Any
    ) -> Tensor:
        threads = torch.get_num_threads()
        late = late_rows(weight, updates)
        if late is not None:
            batch.catch_up(late, threads)
        ctx.batch, ctx.sparse_grad, ctx.updates = batch, sparse_grad, updates
        ctx.weight = weight  # its values are not needed, so an update in place does no harm
        output = torch.empty(batch.examples, weight.shape[1])
        bias = None if bias is None else bias.detach().float()
        batch.forward(weight.detach().contiguous(), bias, output, threads)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_output = grad_output.contiguous()
        depth, threads = grad_output.shape[1], torch.get_num_threads()
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_bias = torch.empty(depth)
            ctx.batch.bias_gradient(grad_output, grad_bias)
        if ctx.updates is not None:
            ctx.batch.update(grad_output, ctx.updates.bound(ctx.weight), threads)
        elif ctx.needs_input_grad[0]:
            rows = torch.from_numpy(ctx.batch.rows)
            grad_rows = torch.empty(len(rows), depth)
            ctx.batch.backward(grad_output, grad_rows, threads)
            grad_weight = row_gradient(rows, grad_rows, ctx.weight.detach(), ctx.sparse_grad)
        return grad_weight, grad_bias, None, None, None


def _compressed_rows(features: Any, width: int) -> tuple[Any, Any, Any]:
    """Return row offsets, column indices and float32 values of a batch as contiguous arrays."""
    if isinstance(features, Tensor) and features.layout == torch.sparse_csr:
        parts = (features.crow_indices(), features.col_indices(), features.values())
        arrays = [part.detach().cpu().numpy() for part in parts]
    elif getattr(features, "format", None) == "csr":
        arrays = [features.indptr, features.indices, features.data]
        arrays[1:] = [array[: arrays[0][-1]] for array in arrays[1:]]  # capacity may be left over
    else:
        kind = getattr(features, "layout", None) or type(features).__name__
        raise DataError(
            f"SparseLinear: features is {kind}, expected a scipy.sparse CSR matrix (call .tocsr()) "
            f"or a torch.sparse_csr tensor (call .to_sparse_csr())."
        )
    if len(features.shape) != 2 or features.shape[1] != width:
        raise DataError(
            f"SparseLinear: features has shape {list(features.shape)}, expected [B, {width}]."
        )
    offsets, columns, values = arrays
    if not (np.issubdtype(values.dtype, np.floating) or values.dtype.kind in "biu"):
        raise DataError(f"SparseLinear: features has values of type {values.dtype}, expected real.")
    index = np.int32 if offsets.dtype == columns.dtype == np.int32 else np.int64
    with np.errstate(over="ignore"):  # what overflows is reported with its place
        values = np.ascontiguousarray(values, dtype=np.float32)
    return np.ascontiguousarray(offsets, index), np.ascontiguousarray(columns, index), values
