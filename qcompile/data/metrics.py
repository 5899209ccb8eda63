"""Measures of extreme classification, by the definitions of pyxclib.

Propensities: Jain, Prabhu, Varma, Extreme Multi-label Loss Functions for Recommendation, Tagging,
Ranking & Other Missing Label Applications, KDD 2016. An example without right labels counts as
one that was answered wrongly. docs/data.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from qcompile.errors import DataError

__all__ = [
    "Evaluation",
    "hit_at_k",
    "ndcg_at_k",
    "precision_at_k",
    "propensity_weights",
    "psndcg_at_k",
    "psp_at_k",
]

_STRETCH = 1 << 22  # scores ranked at a time, to bound memory


def precision_at_k(answers: Any, labels: Any, k: int) -> float:
    """Return P@k, the share of the k best answers that are right, averaged over examples.

    Args:
        answers: floating [n, N] scores of all labels, integer [n, ≥ k] ids, best first, of which
            negative ones are no answer, or a scipy sparse matrix [n, N] of the scores of some
            labels; an array or a CPU tensor.
        labels: the right labels, integer [n, T] padded with -1, or a scipy sparse matrix [n, N]
            whose non-zero entries they are.
        k: number of answers that count.

    Raises:
        DataError: shapes, types or k do not fit, an id is given twice in a row, a score is NaN.
    """
    return _one("P", answers, labels, k)


def hit_at_k(answers: Any, labels: Any, k: int) -> float:
    """Return the share of examples that have a right answer among their k best.

    Takes and raises the same as :func:`precision_at_k`.
    """
    return _one("hit", answers, labels, k)


def ndcg_at_k(answers: Any, labels: Any, k: int) -> float:
    """Return nDCG@k: right answers count 1/log₂(1 + rank), as a share of the best attainable.

    Takes and raises the same as :func:`precision_at_k`.
    """
    return _one("nDCG", answers, labels, k)


def psp_at_k(answers: Any, labels: Any, weights: Any, k: int) -> float:
    """Return PSP@k: P@k with weighted labels, divided by the best attainable.

    Args:
        answers: see :func:`precision_at_k`.
        labels: likewise.
        weights: floating [N], the weight of each label, see :func:`propensity_weights`.
        k: number of answers that count.

    Raises:
        DataError: as :func:`precision_at_k`, or no example has a label.
    """
    return _one("PSP", answers, labels, k, weights)


def psndcg_at_k(answers: Any, labels: Any, weights: Any, k: int) -> float:
    """Return PSnDCG@k: nDCG@k with weighted labels, divided by the best attainable.

    Takes and raises the same as :func:`psp_at_k`.
    """
    return _one("PSnDCG", answers, labels, k, weights)


def propensity_weights(labels: Any, a: float = 0.55, b: float = 1.5) -> np.ndarray:
    """Return the inverse propensity of each label, float64 [N]: rare labels weigh more.

    The weight of a label with m of n examples is 1 + (ln n - 1)(1 + b)^a (m + b)^-a.

    Args:
        labels: scipy sparse [n, N], the training labels.
        a: .5 for Wikipedia's datasets, .6 for Amazon's, .55 for others.
        b: .4, 2.6 and 1.5.

    Raises:
        DataError: ``labels`` is not a sparse matrix with a row.
    """
    if not sparse.issparse(labels) or not labels.shape[0]:
        raise DataError("propensity_weights: expected a scipy.sparse matrix [n, N] of labels.")
    labels = labels.tocsr()
    counts = np.bincount(labels.indices[labels.data != 0], minlength=labels.shape[1])
    scale = (np.log(labels.shape[0]) - 1) * (1 + b) ** a
    return 1 + scale * (counts + b) ** -a


class Evaluation:
    """Sums measures over batches, so that no array of all answers is needed.

    Args:
        ks: numbers of answers that count.
        weights: floating [N], see :func:`propensity_weights`; None leaves out PSP and PSnDCG.
    """

    def __init__(self, ks: Sequence[int] = (1, 3, 5), weights: Any = None) -> None:
        self.ks = tuple(int(k) for k in ks)
        if not self.ks or min(self.ks) < 1:
            raise DataError(f"metrics: k is {ks}, expected positive numbers.")
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self.examples = 0
        self._sums: dict[str, np.ndarray] = {}

    def add(self, answers: Any, labels: Any) -> None:
        """Count a batch; takes and raises as :func:`precision_at_k`."""
        width = max(self.ks)
        ids = _best(answers, width)
        right = _Right(labels, len(ids))
        flags = right.find(ids)
        sums = {
            "P": np.cumsum(flags, axis=1).sum(axis=0),
            "hit": np.logical_or.accumulate(flags, axis=1).sum(axis=0),
            "nDCG": _ndcg(flags, right.counts),
        }
        if self.weights is not None:
            gains = np.where(flags, self._weigh(np.maximum(ids, 0) * flags), 0)
            best = right.best(self._weigh(right.labels), width)
            sums["PSP"] = np.cumsum(gains, axis=1).sum(axis=0)
            sums["PSP best"] = np.cumsum(best, axis=1).sum(axis=0)
            sums["PSnDCG"] = _ndcg(gains, right.counts)
            sums["PSnDCG best"] = _ndcg(best, right.counts)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self.examples += len(ids)

    def results(self) -> dict[str, float]:
        """Return each measure so far: ``P@1``, ``hit@1``, ``nDCG@1``, ``PSP@1``, ….

        Raises:
            DataError: nothing was counted; or there are weights, but no example had a label.
        """
        if not self.examples:
            raise DataError("metrics: no example was given.")
        if self.weights is not None and not self._sums["PSP best"][-1] > 0:
            raise DataError("metrics: no example has a label, so PSP is not defined.")
        results = {}
        for k in self.ks:
            at = {name: float(values[k - 1]) for name, values in self._sums.items()}
            results[f"P@{k}"] = at["P"] / k / self.examples
            results[f"hit@{k}"] = at["hit"] / self.examples
            results[f"nDCG@{k}"] = at["nDCG"] / self.examples
            if self.weights is not None:
                results[f"PSP@{k}"] = at["PSP"] / at["PSP best"]
                results[f"PSnDCG@{k}"] = at["PSnDCG"] / at["PSnDCG best"]
        return results

    def _weigh(self, labels: np.ndarray) -> np.ndarray:
        assert self.weights is not None
        if self.weights.ndim != 1 or labels.max(initial=-1) >= len(self.weights):
            raise DataError(
                f"metrics: weights of the shape {list(self.weights.shape)} do not cover label "
                f"{labels.max(initial=-1)}."
            )
        return self.weights[labels]


class _Right:
    """The right labels of n examples, ascending by example and label."""

    def __init__(self, labels: Any, examples: int) -> None:
        rows, found = _entries(labels, examples)
        self.width = int(found.max(initial=0)) + 1
        keys = np.unique(rows * self.width + found)
        self._keys = keys
        self.rows, self.labels = np.divmod(keys, self.width)
        self.counts = np.bincount(self.rows, minlength=examples)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Tell which ids int64 [n, k] are right, bool [n, k]."""
        known = (ids >= 0) & (ids < self.width)
        if not len(self._keys):
            return np.zeros_like(known)
        keys = np.arange(len(ids))[:, None] * self.width + ids
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return known & (self._keys[place] == keys)

    def best(self, weights: np.ndarray, k: int) -> np.ndarray:
        """Return the k largest weights of each example's labels, descending, 0 where missing."""
        order = np.lexsort((-weights, self.rows))
        rank = np.arange(len(order)) - (np.cumsum(self.counts) - self.counts)[self.rows]
        best = np.zeros((len(self.counts), k))
        kept = rank < k
        best[self.rows[kept], rank[kept]] = weights[order][kept]
        return best


def _one(name: str, answers: Any, labels: Any, k: int, weights: Any = None) -> float:
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise DataError(f"metrics: k is {k!r}, expected an integer.")
    evaluation = Evaluation((int(k),), weights)
    evaluation.add(answers, labels)
    return evaluation.results()[f"{name}@{k}"]


def _ndcg(gains: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum the nDCG at 1 … k over examples: gains [n, k] in order, counts [n] of right labels."""
    discounts = 1 / np.log2(np.arange(gains.shape[1]) + 2)
    attainable = np.concatenate([[np.inf], np.cumsum(discounts)])
    ks = np.arange(1, gains.shape[1] + 1)
    ideal = attainable[np.minimum(counts[:, None], ks)]
    return (np.cumsum(gains * discounts, axis=1) / ideal).sum(axis=0)


def _entries(labels: Any, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return example and label of each right label, int64."""
    if sparse.issparse(labels):
        matrix = labels.tocoo()
        shape, kept = matrix.shape, matrix.data != 0
        rows, found = matrix.row[kept].astype(np.int64), matrix.col[kept].astype(np.int64)
    else:
        array = _array(labels)
        shape = array.shape
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise DataError(
                f"metrics: labels {array.dtype} {list(shape)}; expected integers [n, T]."
            )
        rows, columns = np.nonzero(array >= 0)
        found = array[rows, columns].astype(np.int64)
    if shape[0] != examples:
        raise DataError(f"metrics: answers for {examples} examples, labels for {shape[0]}.")
    return rows, found


def _best(answers: Any, k: int) -> np.ndarray:
    """Return the ids of the k best answers of each example, best first, int64 [n, k]."""
    if sparse.issparse(answers):
        return _best_of_sparse(answers.tocsr(copy=True), k)
    found = _array(answers)
    if found.ndim != 2 or found.dtype.kind not in "iuf" or not len(found):
        raise DataError(
            f"metrics: answers {found.dtype} {list(found.shape)}; expected floating scores or "
            f"integer ids [n ≥ 1, …]."
        )
    if k > found.shape[1]:
        raise DataError(f"metrics: k is {k}, expected 1 to {found.shape[1]}.")
    if found.dtype.kind == "f":
        return _best_of_dense(found, k)
    ids = found[:, :k].astype(np.int64)
    ordered = np.sort(ids, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise DataError("metrics: an example's answers name a label twice.")
    return ids


def _best_of_dense(scores: np.ndarray, k: int) -> np.ndarray:
    best = np.empty((len(scores), k), dtype=np.int64)
    rows = max(1, _STRETCH // scores.shape[1])
    for start in range(0, len(scores), rows):
        part = -scores[start : start + rows]
        if np.isnan(part).any():
            raise DataError("metrics: a score is NaN.")
        ids = np.argpartition(part, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(part, ids, axis=1), axis=1, kind="stable")
        best[start : start + rows] = np.take_along_axis(ids, order, axis=1)
    return best


def _best_of_sparse(scores: Any, k: int) -> np.ndarray:
    if np.isnan(scores.data).any() or not scores.shape[0]:
        raise DataError("metrics: a score is NaN, or there are no examples.")
    scores.sum_duplicates()
    counts = np.diff(scores.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((-scores.data, rows))
    rank = np.arange(len(order)) - scores.indptr[:-1][rows]
    kept = rank < k
    ids = np.full((len(counts), k), -1, dtype=np.int64)
    ids[rows[kept], rank[kept]] = scores.indices[order][kept]
    return ids


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16
    return np.asarray(values)
