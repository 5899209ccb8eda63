"""Metrics of extreme classification."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompile.errors import DataError

__all__ = ["hit_at_k", "precision_at_k"]


def precision_at_k(scores_or_ids: Any, labels: Any, k: int) -> float:
    """Return P@k, the share of the k best answers that are right, averaged over examples.

    Args:
        scores_or_ids: floating [n, N] scores of all labels, or integer [n, ≥ k] ids, best first;
            an array or a CPU tensor.
        labels: integer [n, T], the right labels, padded with -1.
        k: number of answers that count.

    Raises:
        DataError: shapes, types or k do not fit.
    """
    return float(_hits(scores_or_ids, labels, k).mean())


def hit_at_k(scores_or_ids: Any, labels: Any, k: int) -> float:
    """Return the share of examples that have a right answer among their k best.

    Takes and raises the same as :func:`precision_at_k`.
    """
    return float(_hits(scores_or_ids, labels, k).any(axis=1).mean())


def _hits(scores_or_ids: Any, labels: Any, k: int) -> np.ndarray:
    """Tell for each of the k best answers whether it is right, bool [n, k]."""
    answers, right = _array(scores_or_ids), _array(labels)
    if answers.ndim != 2 or right.ndim != 2 or len(answers) != len(right) or not len(answers):
        raise DataError(
            f"metrics: expected scores or ids [n, …] and labels [n, T] of the same n ≥ 1, got "
            f"{list(answers.shape)} and {list(right.shape)}."
        )
    if right.dtype.kind not in "iu" or answers.dtype.kind not in "iuf":
        raise DataError(
            f"metrics: expected floating scores or integer ids and integer labels, got "
            f"{answers.dtype} and {right.dtype}."
        )
    if not 1 <= k <= answers.shape[1]:
        raise DataError(f"metrics: k is {k}, expected 1 to {answers.shape[1]}.")
    ids = _best(answers, k) if answers.dtype.kind == "f" else answers[:, :k]
    return ((ids[:, :, None] == right[:, None, :]) & (right >= 0)[:, None, :]).any(axis=2)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the k largest of each row, best first."""
    ids = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, ids, axis=1), axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1)


def _array(values: Any) -> np.ndarray:
    detach = getattr(values, "detach", None)
    return np.asarray(detach() if detach is not None else values)
