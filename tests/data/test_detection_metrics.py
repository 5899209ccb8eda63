"""Average precision against cases worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.data.detection_metrics import DetectionEvaluation, average_precision
from qcompile.data.detection_set import Annotated
from qcompile.errors import ConfigurationError, DataError

BOX = (0.2, 0.2, 0.6, 0.6)
NEAR = (0.2, 0.2, 0.6, 0.5)  # overlaps BOX by 0.75
FAR = (0.5, 0.5, 0.9, 0.9)  # by 1/31


def truth(*objects) -> Annotated:
    """Objects as (box, label) or (box, label, difficult)."""
    return Annotated(
        np.zeros((3, 4, 4), np.uint8),
        np.array([o[0] for o in objects], np.float32).reshape(-1, 4),
        np.array([o[1] for o in objects], np.int64),
        np.array([len(o) == 3 for o in objects], bool),
    )


def found(*answers):
    """Answers as (box, score, label)."""
    boxes = np.array([a[0] for a in answers], np.float64).reshape(-1, 4)
    return boxes, np.array([a[1] for a in answers], float), np.array([a[2] for a in answers], int)


def test_the_area_by_hand():
    # Right, wrong, right, right of four objects: precisions 1, 1/2, 2/3, 3/4; the envelope at the
    # three recalls is 1, 3/4, 3/4; the fourth object is never found.
    right = np.array([True, False, True, True])
    assert average_precision(right, 4) == pytest.approx((1 + 0.75 + 0.75) / 4, rel=1e-15)


def test_eleven_points_by_hand():
    # Recalls .25 .25 .5 .75: up to .2 the precision 1, from .3 to .7 it is 3/4, then nothing.
    right = np.array([True, False, True, True])
    assert average_precision(right, 4, "11-point") == pytest.approx((3 * 1 + 5 * 0.75) / 11)


def test_a_recall_of_three_tenths_counts_as_such():
    right = np.array([True] * 3)
    assert average_precision(right, 10, "11-point") == pytest.approx(4 / 11)


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 5))
@settings(deadline=None)
def test_both_are_between_none_and_all(flags, missed):
    right = np.array(flags, bool)
    objects = int(right.sum()) + missed
    if not objects:
        return
    for method in ("area", "11-point"):
        value = average_precision(right, objects, method)
        assert 0 <= value <= 1 + 1e-12
        best = average_precision(np.sort(right)[::-1], objects, method)
        assert value <= best + 1e-12
        more = average_precision(np.append(right, False), objects, method)
        assert more == pytest.approx(value, abs=1e-12)
    by_hand = 0.0
    for place in np.flatnonzero(right):
        tail = [right[: k + 1].mean() for k in range(place, len(right))]
        by_hand += max(tail) / objects
    assert average_precision(right, objects) == pytest.approx(by_hand, abs=1e-12)


def test_images_classes_and_doubles():
    evaluation = DetectionEvaluation(("cat", "dog", "cow"))
    # The cat is found, then once more, which is wrong; a dog is said to be where there is a cat.
    evaluation.add(*found((NEAR, 0.9, 0), (BOX, 0.8, 0), (BOX, 0.7, 1)), truth((BOX, 0)))
    # The dog is found late, behind a cat that is not there.
    evaluation.add(*found((BOX, 0.95, 0), (FAR, 0.6, 1)), truth((FAR, 1)))
    got = evaluation.results()
    # Cats by score: wrong (0.95), right (0.9), wrong: 1/2. Dogs: wrong (0.7), right (0.6): 1/2.
    assert got == {"mAP": 0.5, "cat": 0.5, "dog": 0.5}


def test_difficult_objects_are_neither_right_nor_wrong():
    evaluation = DetectionEvaluation(("cat",))
    evaluation.add(*found((BOX, 0.9, 0), (BOX, 0.8, 0)), truth((BOX, 0, "difficult")))
    evaluation.add(*found((FAR, 0.5, 0)), truth((FAR, 0)))
    assert evaluation.results() == {"mAP": 1.0, "cat": 1.0}


def test_an_answer_goes_to_the_object_that_it_overlaps_most():
    """Even where that one is taken and another overlaps enough: the development kit's rule."""
    evaluation = DetectionEvaluation(("cat",), overlap=0.5)
    evaluation.add(*found((BOX, 0.9, 0), (BOX, 0.8, 0)), truth((BOX, 0), (NEAR, 0)))
    assert evaluation.results()["cat"] == pytest.approx(0.5)


def test_the_overlap_may_be_exactly_the_least():
    for overlap, wanted in ((0.75, 1.0), (0.76, 0.0)):
        evaluation = DetectionEvaluation(("cat",), overlap)
        half = truth(((0.0, 0.0, 0.5, 0.5), 0))
        evaluation.add(*found(((0.0, 0.0, 0.5, 0.375), 0.9, 0)), half)
        assert evaluation.results()["cat"] == wanted


def test_tensors_and_images_without_anything():
    evaluation = DetectionEvaluation(("cat",))
    none = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    evaluation.add(*none, truth())
    with pytest.raises(DataError, match="no object"):
        evaluation.results()
    evaluation.add(*none, truth((BOX, 0)))
    assert evaluation.results()["mAP"] == 0


def test_what_does_not_fit_is_refused():
    evaluation = DetectionEvaluation(("cat",))
    for answers, says in (
        (found((BOX, 0.9, 1)), "labels 1 to 1"),
        (found((BOX, float("nan"), 0)), "NaN"),
        ((np.zeros((2, 4)), np.zeros(1), np.zeros(2, int)), r"expected \[k, 4\]"),
        ((np.zeros((1, 5)), np.zeros(1), np.zeros(1, int)), r"expected \[k, 4\]"),
    ):
        with pytest.raises(DataError, match=says):
            evaluation.add(*answers, truth((BOX, 0)))
    with pytest.raises(DataError, match="labels 3"):
        evaluation.add(*found(), truth((BOX, 3)))
    with pytest.raises(ConfigurationError, match="overlap"):
        DetectionEvaluation(("cat",), 0.0)
    with pytest.raises(ConfigurationError, match="'11-point'"):
        DetectionEvaluation(("cat",), method="11-points")
