"""How often hash functions should agree on two vectors: theory, in float64, by Monte Carlo.

Independent of the implementations: coordinates are drawn by NumPy, afresh for each draw.
"""

from __future__ import annotations

import numpy as np

from qcompile.runtime.reference.lsh import BIN, top_set

__all__ = ["doph_agreement", "dwta_agreement", "jaccard", "simhash_agreement", "wta_agreement"]

_BORROWED = 64
"""Bins that are tried for one that is not empty."""


def simhash_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return 1 - θ/π (Goemans and Williamson, 1995), averaged over pairs [n, d]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(1 - np.arccos(np.clip((a * b).sum(axis=1) / norms, -1, 1)).mean() / np.pi)


def wta_agreement(
    a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return how often the largest of eight random coordinates is the same one in both vectors.

    Args:
        a: vectors [n, d].
        b: their partners.
        draws: sets of coordinates a pair.
        rng: source of them.

    Returns:
        Mean and standard error over all pairs and draws.
    """
    return _densified(a, b, draws, 0, rng)


def dwta_agreement(
    a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the same where a bin that is all zero borrows the place from a bin drawn anew.

    Both vectors borrow from the same sequence of bins, each from the first that serves it.
    """
    return _densified(a, b, draws, _BORROWED, rng)


def doph_agreement(
    a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the same for the sets of the largest values: places of the first member of a bin."""
    return _densified(top_set(a) * 1.0, top_set(b) * 1.0, draws, _BORROWED, rng)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jaccard similarity of the sets of the largest values, averaged over pairs."""
    one, other = top_set(a), top_set(b)
    return float(((one & other).sum(axis=1) / (one | other).sum(axis=1)).mean())


def _densified(
    a: np.ndarray, b: np.ndarray, draws: int, borrowed: int, rng: np.random.Generator
) -> tuple[float, float]:
    count, dimension = a.shape
    width = min(BIN, dimension)
    agreed = np.empty(draws)
    for draw in range(draws):
        places = np.zeros((2, count), np.int64)
        waiting = np.ones((2, count), bool)
        for _ in range(1 + borrowed):
            bins = np.argsort(rng.random((count, dimension)), axis=1)[:, :width]
            for side, vectors in enumerate((a, b)):
                values = np.take_along_axis(vectors.astype(np.float64), bins, axis=1)
                served = waiting[side] & ((values != 0).any(axis=1) | (borrowed == 0))
                places[side, served] = values.argmax(axis=1)[served]
                waiting[side] &= ~served
            if not waiting.any():
                break
        agreed[draw] = (places[0] == places[1]).mean()
    return float(agreed.mean()), float(agreed.std(ddof=1) / np.sqrt(draws))
