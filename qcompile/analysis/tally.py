"""Distributions that are counted batch by batch, in bins that hold any float."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["EDGES", "Distribution", "Tally"]

_POSITIVE = torch.logspace(-6, 6, 12 * 5 + 1, dtype=torch.float64)
EDGES = torch.cat([-_POSITIVE.flip(0), _POSITIVE])
"""Between bins, ascending: five a decade from ±1e-6 to ±1e6, one around zero, two beyond."""


@dataclass(frozen=True)
class Distribution:
    """Values of one kind.

    Args:
        count: how many were finite.
        not_finite: how many were NaN or infinite.
        mean: of the finite ones, as are all below; 0 without any.
        std: standard deviation.
        least: smallest.
        greatest: largest.
        zeros: share that is exactly zero.
        bins: how many fell below, between and above :data:`EDGES`.
    """

    count: int
    not_finite: int
    mean: float
    std: float
    least: float
    greatest: float
    zeros: float
    bins: list[int] = field(repr=False)

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(abs(self.least), abs(self.greatest))


class Tally:
    """Counts values, in float64."""

    def __init__(self) -> None:
        self._count = self._not_finite = self._zeros = 0
        self._sum = self._squares = 0.0
        self._least, self._greatest = float("inf"), float("-inf")
        self._bins = torch.zeros(len(EDGES) + 1, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor of any shape and device."""
        flat = values.detach().flatten().double().cpu()
        finite = flat[flat.isfinite()]
        self._not_finite += flat.numel() - finite.numel()
        if finite.numel() == 0:
            return
        self._count += finite.numel()
        self._zeros += int((finite == 0).sum())
        self._sum += float(finite.sum())
        self._squares += float(finite.square().sum())
        self._least = min(self._least, float(finite.min()))
        self._greatest = max(self._greatest, float(finite.max()))
        self._bins += torch.bincount(
            torch.bucketize(finite, EDGES, right=True), minlength=len(self._bins)
        )

    def result(self) -> Distribution:
        """Return what was counted so far."""
        if self._count == 0:
            return Distribution(0, self._not_finite, 0.0, 0.0, 0.0, 0.0, 0.0, self._bins.tolist())
        mean = self._sum / self._count
        variance = max(self._squares / self._count - mean**2, 0.0)
        return Distribution(
            self._count,
            self._not_finite,
            mean,
            variance**0.5,
            self._least,
            self._greatest,
            self._zeros / self._count,
            self._bins.tolist(),
        )
