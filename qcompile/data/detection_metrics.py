"""Average precision of detectors, by the definitions of Pascal VOC.

Source: Everingham et al., "The Pascal Visual Object Classes (VOC) challenge", IJCV 2010, section
4.2 (eleven points, to 2009), and the development kit of 2012 (the area, since 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qcompile.config import choose
from qcompile.data.detection_set import Annotated
from qcompile.errors import ConfigurationError, DataError
from qcompile.models.boxes import intersection_over_union

__all__ = ["DetectionEvaluation", "average_precision"]

_METHODS = ("area", "11-point")
_WRONG, _RIGHT, _IGNORED = 0, 1, -1


def average_precision(
    right: NDArray[np.bool_], objects: int, method: Literal["area", "11-point"] = "area"
) -> float:
    """Return the average precision of ranked answers.

    Args:
        right: bool [n], best first: whether an answer is one of the objects.
        objects: how many there are to find, at least 1.
        method: ``area`` under the precision, made falling in the recall; or ``11-point``, the mean
            over the recalls 0, 0.1, … 1 of the largest precision at that recall or more.
    """
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    if choose("method", method, _METHODS) == "area":
        return float(falling[right].sum() / objects)
    # Whole numbers: 0.3 is not 3 · 0.1.
    reached = [np.flatnonzero(10 * found >= tenth * objects)[:1] for tenth in range(11)]
    return sum(float(falling[first].sum()) for first in reached) / 11


class DetectionEvaluation:
    """Sums up what was found image by image, and tells the mean average precision.

    Args:
        classes: their names.
        overlap: intersection over union from which a box counts as found.
        method: see :func:`average_precision`.

    Raises:
        ConfigurationError: ``overlap`` is out of range, or the method unknown.
    """

    def __init__(
        self,
        classes: Sequence[str],
        overlap: float = 0.5,
        method: Literal["area", "11-point"] = "area",
    ) -> None:
        if not 0 < overlap <= 1:
            raise ConfigurationError(f"overlap must be above 0 and at most 1, got {overlap!r}.")
        choose("method", method, _METHODS)
        self.classes, self.overlap, self.method = tuple(classes), overlap, method
        self._objects = np.zeros(len(self.classes), np.int64)
        self._answers: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, boxes: Any, scores: Any, labels: Any, truth: Annotated) -> None:
        """Count an image.

        A box is right if of all objects of its class it overlaps one most, by ``overlap`` or more,
        which no better box has found; it is left out if that object is difficult.

        Args:
            boxes: floating [k, 4], what was found, as arrays or CPU tensors.
            scores: floating [k], surer ones higher.
            labels: integer [k], places in ``classes``.
            truth: the image; difficult objects need not be found.

        Raises:
            DataError: shapes do not fit, a label is out of range, or a number is NaN.
        """
        boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
        labels = np.asarray(labels, np.int64)
        self._check(boxes, scores, labels, truth)
        np.add.at(self._objects, truth.labels[~truth.difficult], 1)
        order = np.argsort(-scores, kind="stable")
        flags = self._flags(boxes[order], labels[order], truth)
        self._answers.append((scores[order], labels[order], flags))

    def results(self) -> dict[str, float]:
        """Return ``mAP`` and the average precision of each class that has an object, by name.

        Raises:
            DataError: no object was there to find.
        """
        if not self._objects.any():
            raise DataError("detection: there was no object to find, so no precision is defined.")
        scores, labels, flags = (np.concatenate(part) for part in zip(*self._answers, strict=True))
        order = np.argsort(-scores, kind="stable")
        labels, flags = labels[order], flags[order]
        found = {}
        for number, name in enumerate(self.classes):
            if self._objects[number]:
                right = flags[(labels == number) & (flags != _IGNORED)] == _RIGHT
                objects = int(self._objects[number])
                found[name] = average_precision(right, objects, self.method)
        return {"mAP": sum(found.values()) / len(found), **found}

    def _flags(
        self, boxes: NDArray[np.float64], labels: NDArray[np.int64], truth: Annotated
    ) -> NDArray[np.int64]:
        flags = np.full(len(boxes), _WRONG, np.int64)
        overlaps = intersection_over_union(
            torch.from_numpy(boxes), torch.from_numpy(truth.boxes.astype(np.float64))
        ).numpy()
        overlaps[labels[:, None] != truth.labels] = -1
        taken = np.zeros(len(truth.labels), bool)
        for place, row in enumerate(overlaps):
            if not len(row) or row.max() < self.overlap:
                continue
            nearest = int(row.argmax())
            if truth.difficult[nearest]:
                flags[place] = _IGNORED
            elif not taken[nearest]:
                flags[place] = _RIGHT
                taken[nearest] = True
        return flags

    def _check(self, boxes: Any, scores: Any, labels: Any, truth: Annotated) -> None:
        if (
            boxes.ndim != 2
            or boxes.shape[1:] != (4,)
            or not (scores.shape == labels.shape == boxes.shape[:1])
        ):
            raise DataError(
                f"detection: boxes {list(boxes.shape)}, scores {list(scores.shape)}, labels "
                f"{list(labels.shape)}; expected [k, 4], [k] and [k]."
            )
        if np.isnan(boxes).any() or np.isnan(scores).any():
            raise DataError("detection: a box or a score is NaN.")
        for which in (labels, truth.labels):
            if len(which) and not 0 <= which.min() <= which.max() < len(self.classes):
                raise DataError(
                    f"detection: labels {which.min()} to {which.max()}, of {len(self.classes)} "
                    "classes."
                )
