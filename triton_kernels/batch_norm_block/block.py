"""What a normalised block computes, as its passes on a GPU and on a CPU are told."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.triton_kernels.elementwise.terms import Term

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BatchNorm:
    """One batch norm.

    Args:
        batch: whether it normalises by the batch's own statistics, or by the running ones.
        weight: [C] or ``None``.
        bias: [C] or ``None``.
        running: running mean and variance, [C], or ``None``; not written to.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
    """

    batch: bool
    weight: Tensor | None
    bias: Tensor | None
    running: Pair | None = None
    momentum: float = 0.1
    eps: float = 1e-5


@dataclass(frozen=True)
class Block:
    """What a block computes.

    Args:
        term: products, activation.
        norms: of the branches that there are, ``None`` where one is not normalised.
        outer: of the combination, or ``None``.
        channel: dimension of the channels.
    """

    term: Term
    norms: tuple[BatchNorm | None, ...]
    outer: BatchNorm | None
    channel: int

    @property
    def slots(self) -> tuple[BatchNorm | None, ...]:
        """The batch norms, in the order of their constants."""
        return self.norms if self.outer is None else (*self.norms, self.outer)

    @property
    def of_branches(self) -> bool:
        """Whether any branch is normalised."""
        return any(norm is not None for norm in self.norms)


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """Return the type of constants and sums: float32, for float64 itself."""
    return torch.float64 if dtype == torch.float64 else torch.float32
