"""The drawn detection set: the same every time, boxes around what is drawn."""

import numpy as np
import pytest

from qcompile.data import shapes
from qcompile.data.shapes import Shapes
from qcompile.errors import ConfigurationError


def test_an_image_depends_on_seed_and_place_alone():
    first, again = Shapes(5, side=48)[3], Shapes(9, side=48)[3]
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    for other in (Shapes(5, side=48)[2], Shapes(5, side=48, seed=1)[3]):
        assert not np.array_equal(first.image, other.image)


def test_images_have_one_to_four_objects_of_every_class():
    drawn = [Shapes(60, side=40)[i] for i in range(60)]
    assert {len(each.labels) for each in drawn} == {1, 2, 3, 4}
    assert set(np.concatenate([each.labels for each in drawn])) == {0, 1, 2, 3}
    for each in drawn:
        assert each.image.shape == (3, 40, 40)
        assert each.image.dtype == np.uint8
        assert ((each.boxes >= 0) & (each.boxes <= 1)).all()
        assert (each.boxes[:, :2] < each.boxes[:, 2:]).all()
        assert not each.difficult.any()


@pytest.mark.parametrize("name", Shapes.classes)
def test_areas_are_those_of_the_shapes(name):
    """At a turn of anything, in units of the radius squared."""
    arm = 1 / 3.2
    cross = 8 * arm * (1 - arm**2) ** 0.5 - 4 * arm**2
    area = {"circle": np.pi, "square": 2.0, "triangle": 0.75 * 3**0.5, "cross": cross}[name]
    for turn in (0.0, 0.4, 2.5):
        mask = shapes._inside(name, 400, 203.0, 190.0, 150.0, turn)
        assert mask.sum() / 150**2 == pytest.approx(area, rel=0.01)
        rows, columns = np.nonzero(mask)
        assert np.hypot(columns + 0.5 - 203, rows + 0.5 - 190).max() <= 150


def test_a_lone_object_fills_its_box(monkeypatch):
    monkeypatch.setattr(shapes, "_MOST_OBJECTS", 1)
    monkeypatch.setattr(
        shapes,
        "_texture",
        lambda rng, side, colour: np.broadcast_to(colour[:, None, None], (3, side, side)),
    )
    each = Shapes(4, side=64)[1]
    ground = each.image[:, 0, 0].astype(int)
    differs = np.abs(each.image.astype(int) - ground[:, None, None]).max(0) > 50
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    got = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 64
    np.testing.assert_allclose(each.boxes, got[None], atol=1e-6)


def test_sizes_out_of_range_are_refused():
    for count, side in ((0, 96), (3, 20)):
        with pytest.raises(ConfigurationError):
            Shapes(count, side)
    with pytest.raises(IndexError):
        Shapes(3)[3]
