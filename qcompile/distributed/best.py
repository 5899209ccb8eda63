"""The best classes of each example, out of those that each rank has found among its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompile.distributed.group import Group

__all__ = ["merge_best"]


def merge_best(
    group: Group, counts: Sequence[int], scores: Tensor, classes: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the k best classes of this rank's examples; a collective.

    Args:
        group: the ranks.
        counts: examples of each rank.
        scores: float32 [B, ≤ k], of this rank's classes, for the examples of all ranks.
        classes: their numbers over all ranks, below 2³¹.
        k: at most the number of classes of all ranks.

    Returns:
        Scores float32 [B_r, k], highest first, and classes int64 [B_r, k].
    """
    # One message: scores as they are, beside 32-bit numbers.
    found = torch.full((len(scores), 2, k), -1, dtype=torch.int32)
    found[:, 0] = torch.full((), -math.inf).view(torch.int32)
    found[:, 0, : scores.shape[1]] = scores.contiguous().view(torch.int32)
    found[:, 1, : scores.shape[1]] = classes
    own = counts[group.rank]
    parts = group.exchange(found, counts, [own] * group.size)
    parts = parts.view(group.size, own, 2, k).permute(2, 1, 0, 3).reshape(2, own, group.size * k)
    merged, order = parts[0].contiguous().view(torch.float32).sort(descending=True, stable=True)
    return merged[:, :k], parts[1].gather(1, order)[:, :k].long()
