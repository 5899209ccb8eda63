"""Recall of an approximate search, with its confidence interval.

recall@j is the share of the j best classes that are among the first j answers, averaged over
queries. A share lies in 0 … 1, so its variance is at most that of a coin of the same mean (Bhatia
and Davis, 2000): an interval for coins is safe for shares. Used is that of Clopper and Pearson
(1934), whose coverage is never below what it claims.

Queries from one row of inputs, such as the positions of a sequence, resemble each other. They count
as fewer, by the design effect of a cluster sample (Kish, 1965, §5.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Recall:
    """recall@``at`` of a sample.

    Args:
        at: how many answers count.
        mean: over the queries.
        low: lower end of the two-sided interval.
        high: upper end.
        bound: one-sided lower bound, what can be promised.
        queries: size of the sample.
        independent: what the sample is worth in independent queries.
    """

    at: int
    mean: float
    low: float
    high: float
    bound: float
    queries: int
    independent: float


def shares(found: NDArray[np.float32], best: NDArray[np.float32], at: int) -> NDArray[np.float64]:
    """Return for each query which share of its ``at`` best classes was found, float64 [n].

    Args:
        found: scores of the answers, descending [n, k]; all of different classes.
        best: the k largest scores, descending [n, k].
        at: 1 … k.

    An answer counts if its score reaches the ``at``-th best one: of equal scores either is right.
    """
    least = best[:, at - 1 : at]
    # The same product summed in another order moves a score by a few units in the last place.
    slack = 1e-5 * np.maximum(np.abs(least), np.abs(best[:, :1]))
    return np.mean(found[:, :at] >= least - slack, axis=1)


def recall(shares_found: NDArray[np.float64], rows: NDArray[np.int64], at: int) -> Recall:
    """Return mean and intervals of recall.

    Args:
        shares_found: for each query, from :func:`shares` [n].
        rows: the row of inputs that each query stems from [n].
        at: what the shares are of.
    """
    count = len(shares_found)
    mean = float(np.mean(shares_found))
    independent = count / _design_effect(shares_found, rows)
    tail = 1 - CONFIDENCE
    return Recall(
        at=at,
        mean=mean,
        low=_lower(mean, independent, tail / 2),
        high=1 - _lower(1 - mean, independent, tail / 2),
        bound=_lower(mean, independent, tail),
        queries=count,
        independent=independent,
    )


def queries_needed(promised: float) -> int:
    """Return how many independent queries without a miss it takes to show a recall."""
    if promised >= 1:
        raise ValueError("no sample shows that nothing is ever missed")
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(promised))


def _design_effect(values: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
    """Return by how much the mean varies more than that of as many independent queries."""
    _, place, sizes = np.unique(rows, return_inverse=True, return_counts=True)
    variance = float(np.var(values))
    if len(sizes) == len(values) or len(sizes) < 2 or variance == 0:
        return 1.0
    totals = np.bincount(place, values - values.mean())
    between = float(np.sum(totals**2)) * len(sizes) / (len(sizes) - 1)
    return min(max(1.0, between / (variance * len(values))), len(values) / len(sizes))


def _lower(mean: float, count: float, tail: float) -> float:
    from scipy.special import betaincinv

    hits = mean * count
    return float(betaincinv(hits, count - hits + 1, tail)) if hits > 0 else 0.0
