"""Compares what two models answer, within tolerances that floating point explains.

A score is a sum of d products. Added in another order, with or without fused multiply-add, it
moves by at most d · 2⁻²⁴ times the sum of the products' magnitudes, and by far less as a rule:
1e-4 of the largest score leaves room for d in the thousands and catches any wrong weight, bias or
row. A probability is e to such a score, so what is an absolute error of the score is a relative one
of it; rows that are beyond all doubt improbable keep an int8 score, hence a small absolute part.
Of equal scores either id is right: an id is judged by the score that the source gives it. Where the
model itself rounds its scores to integers, a score between two steps may go to either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qcompile.errors import ExportError

SCORES = 1e-4
"""Allowed difference of a float32 output, relative to the largest magnitude in it."""

HALF = 1e-2
"""The same for a float16 output: 2⁻¹¹ a rounding, of which a source in float16 makes many."""

PROBABILITIES = (1e-3, 1e-7)
"""Allowed difference of a probability, relative to itself and absolute."""

ESTIMATED = 0.5
"""Relative difference that an estimated partition function may make. The estimate has no bound,
least of all on inputs unlike those of calibration: this finds blunders, not inaccuracy."""


@dataclass(frozen=True)
class Difference:
    """How far two answers lie apart.

    Args:
        variant: how the exported model ran: ``plugin`` or ``functions``.
        output: name of the output.
        largest: largest absolute difference.
        allowed: what was allowed where the difference came closest to it.
    """

    variant: str
    output: str
    largest: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within what is allowed."""
        return self.largest <= self.allowed


@dataclass(frozen=True)
class Expectation:
    """What is expected of one output, or of one pair of scores and ids.

    Args:
        output: name of the output to judge; of the ids, where ``scores`` is set.
        values: the source's answer; all scores [..., N] where ``ids`` are judged.
        kind: ``values``, ``ids`` (judged by their scores in ``values``) or ``best`` (``output``
            holds the k best of ``values``, ``ids`` their ids).
        ids: for ``ids`` the source's ids; for ``best`` the name of the output of ids.
        probabilities: whether the values come from a fused softmax.
        axis: counted from the end, the axis of the classes; of ``values`` where ids are judged.
        ids_axis: the same in the ids, where ids are judged.
        step: the step by which the model rounds its scores, 0 without.
        inexact: relative error that the source makes by itself.
        approximate: whether the plugin may miss some of the best; what it hands out must be right
            all the same.
        estimated: whether the plugin estimates the partition function of probabilities.
    """

    output: str
    values: Any
    kind: Literal["values", "ids", "best"] = "values"
    ids: Any = None
    probabilities: bool = False
    axis: int = -1
    ids_axis: int = -1
    step: float = 0.0
    inexact: float = 0.0
    approximate: bool = False
    estimated: bool = False


def compare(
    expectations: Sequence[Expectation], answers: Mapping[str, Any], variant: str
) -> list[Difference]:
    """Hold a model's answers against what is expected.

    Raises:
        ExportError: an output is missing, has another shape or type, or differs by more than is
            allowed; names the largest difference.
    """
    found = []
    for expectation in expectations:
        if expectation.output not in answers:
            raise ExportError(
                f"verification ({variant}): output {expectation.output!r} is missing."
            )
        for expected, answer in _pairs(expectation, answers, variant):
            found.append(_judge(expected, answer, expectation, variant))
    wrong = [difference for difference in found if not difference.ok]
    if wrong:
        worst = max(wrong, key=lambda difference: difference.largest)
        raise ExportError(
            f"verification ({variant}): output {worst.output!r} differs by {worst.largest:.3g}, "
            f"allowed are {worst.allowed:.3g}; nothing was written."
        )
    return found


def _pairs(
    expectation: Expectation, answers: Mapping[str, Any], variant: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return which arrays have to agree."""
    answer = answers[expectation.output]
    misses = expectation.approximate and variant == "plugin"
    if misses and expectation.kind != "best":
        return []  # without the scores of all classes there is nothing to judge a choice by
    if expectation.kind == "ids":
        scores = np.moveaxis(np.asarray(expectation.values), expectation.axis, -1)
        rows = _rows(
            scores,
            _moved(expectation.ids, expectation.ids_axis, scores),
            _moved(answer, expectation.ids_axis, scores),
        )
        if rows is None:
            return [(expectation.ids, answer)]
        scores, expected, ids = rows
        return [(np.take_along_axis(scores, expected, -1), np.take_along_axis(scores, ids, -1))]
    if expectation.kind == "best":
        scores, answer, ids = (
            np.moveaxis(np.asarray(array), expectation.axis, -1)
            for array in (expectation.values, answer, answers[expectation.ids])
        )
        if ids.size and not (ids.min() >= 0 and ids.max() < scores.shape[-1]):
            raise ExportError(f"verification ({variant}): an id is outside 0 … {scores.shape[-1]}.")
        k = answer.shape[-1]
        best = -np.partition(-scores, k - 1, axis=-1)[..., :k]
        best = -np.sort(-best, axis=-1)
        if misses:
            best = np.where(answer <= best, answer, best)
        return [(best, answer), (np.take_along_axis(scores, ids, axis=-1), answer)]
    if isinstance(expectation.values, np.ndarray) and isinstance(answer, np.ndarray):
        return [(expectation.values, answer)]
    if expectation.values == answer:
        return []
    raise ExportError(f"verification ({variant}): output {expectation.output!r} differs.")


def _moved(ids: np.ndarray, axis: int, scores: np.ndarray) -> np.ndarray:
    """Put the axis of the chosen last, unless the choice dropped it."""
    return np.moveaxis(ids, axis, -1) if ids.ndim == scores.ndim else ids


def _rows(scores: np.ndarray, expected: np.ndarray, ids: np.ndarray):
    """Return scores [rows, N] and both arrays of ids [rows, k], where they belong together."""
    scores = np.asarray(scores)
    flat = scores.reshape(-1, scores.shape[-1])
    if not len(flat) or expected.shape != ids.shape or ids.size % len(flat):
        return None
    if ids.size and not (ids.min() >= 0 and ids.max() < flat.shape[1]):
        return None
    return flat, expected.reshape(len(flat), -1), ids.reshape(len(flat), -1)


def _judge(
    expected: np.ndarray, answer: np.ndarray, expectation: Expectation, variant: str
) -> Difference:
    name = expectation.output
    if expected.shape != answer.shape or expected.dtype != answer.dtype:
        raise ExportError(
            f"verification ({variant}): output {name!r} is {answer.dtype}{list(answer.shape)}, "
            f"expected {expected.dtype}{list(expected.shape)}."
        )
    if not np.issubdtype(expected.dtype, np.floating):
        if expectation.step:
            apart = np.abs(expected.astype(np.int64) - answer.astype(np.int64))
            return Difference(variant, name, float(apart.max(initial=0)), 1.0)
        return Difference(variant, name, float(np.count_nonzero(expected != answer)), 0.0)
    if expected.size and not np.isfinite(expected).any():
        raise ExportError(
            f"verification: output {name!r} of the source holds no finite number on these inputs; "
            "give real inputs (--inputs FILE.npz)."
        )
    share = max(HALF if expected.dtype == np.float16 else SCORES, expectation.inexact)
    if expectation.estimated and variant == "plugin":
        share = max(share, ESTIMATED)
    gap = _gap(expected.astype(np.float64), answer.astype(np.float64))
    magnitude = np.abs(np.where(np.isfinite(expected), expected, 0).astype(np.float64))
    if expectation.probabilities:
        relative, absolute = PROBABILITIES
        allowed = np.maximum(relative, share) * magnitude + absolute
    else:
        # A score on the border between two steps may be rounded to either.
        allowed = np.full_like(gap, share * magnitude.max(initial=0.0) + 1.01 * expectation.step)
    if not gap.size:
        return Difference(variant, name, 0.0, 0.0)
    excess = gap - allowed
    place = np.unravel_index(np.argmax(excess if excess.max() > 0 else gap), gap.shape)
    return Difference(variant, name, float(gap[place]), float(allowed[place]))


def _gap(expected: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Return the absolute difference; infinite where only one is a finite number."""
    same = (expected == answer) | (np.isnan(expected) & np.isnan(answer))
    finite = np.isfinite(expected) & np.isfinite(answer)
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, np.where(finite, np.abs(expected - answer), np.inf))
