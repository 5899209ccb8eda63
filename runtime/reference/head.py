"""The operators of an output layer in NumPy, in float64: ground truth for kernels and passes.

Every function takes ``hidden`` [..., d], ``weight`` [N, d] and ``bias`` [N].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]


def linear(hidden: Floats, weight: Floats, bias: Floats) -> NDArray[np.float32]:
    """Return ``hidden @ weight.T + bias``, float32 [..., N]."""
    return _as_float32(_scores(hidden, weight, bias))


def linear_top_k(
    hidden: Floats, weight: Floats, bias: Floats, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k largest scores and their ids, float32 and int64 [..., k].

    Scores descend after rounding to float32; of equal scores the smaller id comes first. NaN
    ranks above everything, as in ``torch.topk``.
    """
    scores = linear(hidden, weight, bias)
    # lexsort is stable and sorts by the last key first: NaN, then the score.
    missing = np.isnan(scores)
    ids = np.lexsort((-np.where(missing, 0, scores), ~missing), axis=-1)[..., :k]
    return np.take_along_axis(scores, ids, axis=-1), ids.astype(np.int64)


def log_sum(hidden: Floats, weight: Floats, bias: Floats) -> NDArray[np.float32]:
    """Return the logarithm of the sum of the exponentials of all scores, float32 [..., 1].

    NaN where a score is NaN, infinite where the greatest is.
    """
    scores = _scores(hidden, weight, bias)
    best = scores.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(best), best, 0)
    with np.errstate(divide="ignore", over="ignore"):
        total = np.log(np.exp(scores - shift).sum(axis=-1, keepdims=True))
    return _as_float32(shift + total)


def linear_softmax(hidden: Floats, weight: Floats, bias: Floats) -> NDArray[np.float32]:
    """Return ``softmax(hidden @ weight.T + bias)`` over the last axis, float32 [..., N]."""
    scores = _scores(hidden, weight, bias)
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return _as_float32(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _scores(hidden: Floats, weight: Floats, bias: Floats) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        product = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
        return product + np.asarray(bias, np.float64)


def _as_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
