"""Images as networks take them."""

import numpy as np
import pytest
import torch

from qcompile.data.image_tensors import image_tensors
from qcompile.errors import DataError


def test_black_is_minus_one_and_white_one():
    images = np.array([[[[0, 8, 16]]]], np.uint8)
    assert image_tensors(images, most=16).tolist() == [[[[-1, 0, 1]]]]


def test_images_that_nearly_fit_get_black_margins():
    images = np.full((2, 3, 5, 4), 255, np.uint8)
    found = image_tensors(images, side=7)
    assert found.shape == (2, 3, 7, 7)
    inside = found[:, :, 1:6, 1:5]
    assert (inside == 1).all()
    assert found.sum() == inside.sum() - (found[0].numel() * 2 - inside.numel())


def test_small_images_are_scaled_by_a_whole_number():
    images = np.random.default_rng(0).integers(17, size=(1, 1, 3, 3), dtype=np.uint8)
    found = image_tensors(images, most=16, side=8)
    small = torch.from_numpy(images / 8 - 1).float()
    wanted = torch.nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(found[:, :, 1:7, 1:7], wanted)
    assert (found[:, :, 0] == -1).all()


def test_larger_images_are_refused():
    with pytest.raises(DataError, match="5×9 pixels do not fit into 8×8"):
        image_tensors(np.zeros((1, 1, 5, 9), np.uint8), side=8)
