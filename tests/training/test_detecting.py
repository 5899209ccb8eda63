"""A detector learns a handful of images by heart; mirrored images keep their objects."""

import numpy as np
import pytest
import torch

from qcompile.data.shapes import Shapes
from qcompile.models.ssd import qssd7
from qcompile.training.detecting import DetectorTraining, _mirror


def test_a_mirrored_image_has_its_objects_mirrored():
    each = Shapes(1, side=40)[0]
    mirrored = _mirror(each)
    assert np.array_equal(mirrored.image[:, :, ::-1], each.image)
    for box, other in zip(each.boxes, mirrored.boxes, strict=True):
        left, right = (round(float(x) * 40) for x in box[[0, 2]])
        assert [round(float(x) * 40) for x in other[[0, 2]]] == [40 - right, 40 - left]
    again = _mirror(mirrored)
    np.testing.assert_allclose(again.boxes, each.boxes, atol=1e-6)


def test_images_learnt_by_heart_are_found(tmp_path):
    torch.manual_seed(0)
    drawn = Shapes(8, side=48)
    training = DetectorTraining("heart", qssd7(4, side=48, scale=0.125), drawn, drawn, 40, tmp_path)
    before = training.measure()["mAP"]
    training.train()
    after = training.curve[-1]["mAP"]
    assert after > 0.8 > 0.3 > before
    assert after == pytest.approx(training.measure()["mAP"])
