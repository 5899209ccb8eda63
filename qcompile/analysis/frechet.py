"""Fréchet distance between two sets of images, by the features that a network has for them.

Source: Heusel et al., "GANs trained by a two time-scale update rule", NIPS 2017, section on the
Fréchet inception distance. There the network is Inception; a score by another network is
comparable with other scores by that network only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from qcompile.errors import DataError

__all__ = ["Moments", "frechet_distance", "moments_of"]


class Moments:
    """Mean and covariance of vectors that come batch by batch, in float64.

    Attributes:
        count: vectors so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin = self._sum = self._products = torch.empty(0, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Count vectors, floating [n, d].

        Raises:
            DataError: they have another shape than those before, or are not finite.
        """
        if vectors.ndim != 2 or (self.count and vectors.shape[1] != len(self._origin)):
            raise DataError(
                f"Moments: vectors of shape {list(vectors.shape)}, expected [n, "
                f"{len(self._origin) if self.count else 'd'}]."
            )
        if not vectors.isfinite().all():
            raise DataError("Moments: a vector is NaN or infinite.")
        if not len(vectors):
            return
        wide = vectors.detach().to("cpu", torch.float64)
        if not self.count:
            # Differences from about the mean: its square would hide small covariances.
            self._origin = wide.mean(0)
            self._sum = torch.zeros_like(self._origin)
            self._products = self._sum.outer(self._sum)
        wide = wide - self._origin
        self._sum = self._sum + wide.sum(0)
        self._products = self._products + wide.T @ wide
        self.count += len(wide)

    @property
    def mean(self) -> Tensor:
        """Float64 [d]."""
        return self._origin + self._sum / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """Float64 [d, d], of the sample, that is, divided by n − 1.

        Raises:
            DataError: there are fewer than two vectors.
        """
        if self.count < 2:
            raise DataError(f"Moments: {self.count} vectors have no covariance; two or more do.")
        return (self._products - self._sum.outer(self._sum) / self.count) / (self.count - 1)


def moments_of(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Moments:
    """Return the moments of the features [n, d] of images that come in batches."""
    found = Moments()
    with torch.no_grad():
        for images in batches:
            found.add(features(images))
    return found


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), 0 for equal moments.

    The trace of the root is that of (C₁^½ C₂ C₁^½)^½, which is symmetric: two eigendecompositions
    instead of the root of a matrix that need not have a real one once it is rounded.

    Raises:
        DataError: the vectors differ in length, or there are fewer than two.
    """
    one, two = first.covariance, second.covariance
    if one.shape != two.shape:
        raise DataError(
            f"frechet_distance: vectors of {len(one)} and of {len(two)} features; take both from "
            "the same network."
        )
    root = _root(one)
    joint = root @ two @ root
    shared = torch.linalg.eigvalsh((joint + joint.T) / 2).clamp(min=0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    return max(0.0, float(apart + one.trace() + two.trace() - 2 * shared))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
