"""The first layer, of sparse examples, replicated on every rank.

Each rank computes the outputs of its own examples. For the update all ranks need the gradient of
the weight over all examples. It can travel as rows of the weight, 4·(d + 1) bytes for each feature
that occurs, or as its factors: the examples, 8 bytes an entry, and the gradients of their outputs,
4·d bytes an example. With B examples of z entries, u·z·B distinct features among these, the factors
are fewer bytes when B·(8·z + 4·d) < 4·(d + 1)·u·z·B, that is unless u < 2/d + 1/z: at d = 128 and
z = 75, unless a feature occurs in 35 examples on average. Sparse data is far from that, so the
factors travel, and every rank computes the same gradient from them, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qcompile.distributed.group import Group
from qcompile.nn.sparse_linear import SparseLinear, _compressed_rows
from qcompile.runtime import _core

__all__ = ["ReplicatedSparseLinear"]


class ReplicatedSparseLinear(SparseLinear):
    """:class:`qcompile.nn.SparseLinear` whose gradient is over the examples of all ranks.

    In training a call is a collective, and so is its backward; gradients are sums over ranks. All
    else is as in ``SparseLinear``.

    Args:
        layer: whose parameters it takes; these must be the same on all ranks.
        group: the ranks.
    """

    sees_all_examples = True

    def __init__(self, layer: SparseLinear, group: Group) -> None:
        nn.Module.__init__(self)
        self._init_rows()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)
        self.group = group
        self.train(layer.training)

    def alone(self) -> SparseLinear:
        """Return a layer of the same parameters that learns from its own examples only."""
        layer = SparseLinear.__new__(SparseLinear)
        nn.Module.__init__(layer)
        layer._init_rows()
        layer.in_features, layer.out_features = self.in_features, self.out_features
        layer.weight = self.weight
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)

    def forward(self, features: Any) -> Tensor:
        """Multiply this rank's batch, see :meth:`qcompile.nn.SparseLinear.forward`."""
        dense = isinstance(features, Tensor) and features.layout == torch.strided
        if dense or not self.training or not torch.is_grad_enabled():
            return super().forward(features)
        arrays = _compressed_rows(features, self.in_features)
        own = _core.CsrProduct(*arrays, self.in_features)
        counts, everything = _gather_rows(self.group, *arrays)
        batch = _SharedInput(
            self.group, counts, own, _core.CsrProduct(*everything, self.in_features)
        )
        return self._product(batch)


class _SharedInput:
    """Stands for ``_core.CsrProduct``: reads the examples of a rank, learns from those of all."""

    def __init__(self, group: Group, counts: list[int], own: Any, everything: Any) -> None:
        self._group, self._counts = group, counts
        self._own, self._all = own, everything
        self._gathered: tuple[Tensor, Tensor] | None = None

    @property
    def examples(self) -> int:
        return int(self._own.examples)

    @property
    def rows(self) -> np.ndarray:
        found: np.ndarray = self._all.rows
        return found

    def forward(self, weight: Tensor, bias: Tensor | None, output: Tensor, threads: int) -> None:
        self._own.forward(weight, bias, output, threads)

    def backward(self, grad_output: Tensor, grad_rows: Tensor, threads: int) -> None:
        self._all.backward(self._over_ranks(grad_output), grad_rows, threads)

    def bias_gradient(self, grad_output: Tensor, grad_bias: Tensor) -> None:
        self._all.bias_gradient(self._over_ranks(grad_output), grad_bias)

    def catch_up(self, weight: Any, threads: int) -> None:
        self._all.catch_up(weight, threads)

    def update(self, grad_output: Tensor, weight: Any, threads: int) -> None:
        self._all.update(self._over_ranks(grad_output), weight, threads)

    def _over_ranks(self, grad_output: Tensor) -> Tensor:
        """Gather the gradients of all ranks' outputs, once for each tensor of them."""
        if self._gathered is None or self._gathered[0] is not grad_output:
            self._gathered = (grad_output, self._group.gather(grad_output, self._counts))
        return self._gathered[1]


def _gather_rows(
    group: Group, offsets: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> tuple[list[int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Put the CSR batches of all ranks together, in one message.

    Returns:
        Examples of each rank; offsets, columns and values of all.
    """
    if group.size == 1:
        return [len(offsets) - 1], (offsets, columns, values)
    entries = len(values)
    lengths = np.diff(offsets).astype(np.int32)
    message = np.concatenate([lengths, columns.astype(np.int32), values.view(np.int32)])
    table = group.table(len(lengths), entries)
    counts = [rows + 2 * stored for rows, stored in table]
    parts = group.gather(torch.from_numpy(message), counts).split(counts)
    pieces = [
        np.split(part.numpy(), [rows, rows + stored])
        for part, (rows, stored) in zip(parts, table, strict=True)
    ]
    lengths, columns, values = (np.concatenate(kind) for kind in zip(*pieces, strict=True))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    everything = (offsets, columns.astype(np.int64), values.view(np.float32))
    return [rows for rows, _ in table], everything
