"""The packed layout: C++ and NumPy agree bit for bit, and the error bound holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompile import ops
from qcompile.errors import DataError
from qcompile.runtime import _core
from qcompile.runtime.reference import index

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
matrices = st.tuples(st.integers(1, 40), st.integers(1, 20)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=finite)
)


def assert_packed_alike(weight: np.ndarray, planes: int = 2) -> index.Packed:
    expected = index.pack(weight, planes)
    for found, array in zip(_core.pack_rows(weight, planes), expected, strict=True):
        np.testing.assert_array_equal(found, array, strict=True)
    return expected


@pytest.mark.parametrize("planes", [1, 2])
@settings(max_examples=60, deadline=None)
@given(weight=matrices)
def test_agrees_with_numpy_and_bounds_the_error(planes, weight):
    packed = assert_packed_alike(weight, planes)
    residual = weight.astype(np.float64) - index.rows(packed, weight.shape[1])
    assert (np.sqrt((residual**2).sum(axis=1)) <= packed.error).all()
    assert np.abs(index.merge(packed.packed).astype(int)).max() <= 127


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (16, 4), (17, 5), (1000, 127), (70, 1024)])
def test_agrees_with_numpy_on_many_shapes(shape, planes):
    rng = np.random.default_rng(0)
    packed = assert_packed_alike(rng.normal(size=shape).astype(np.float32), planes)
    assert packed.packed.shape == (planes, -(-shape[0] // 16), -(-shape[1] // 8), 16, 4)


def test_layout_is_blocks_of_rows_of_four_coordinates():
    weight = np.arange(1, 1 + 18 * 6, dtype=np.float32).reshape(18, 6)
    planes, scale, _ = index.pack(weight)
    blocks = index.merge(planes)
    for row in range(18):
        for column in range(6):
            at = (row // ops.BLOCK_ROWS, column // ops.BLOCK_DEPTH, row % 16, column % 4)
            assert abs(blocks[at] * scale[row] - weight[row, column]) <= scale[row] / 2 * 1.001
    assert not blocks[1, :, 2:].any() and not blocks[:, 1, :, 2:].any()


def test_planes_are_the_halves_of_each_value():
    values = np.arange(-128, 128).astype(np.int8).reshape(1, 4, 16, 4)
    planes = index.split(values)
    np.testing.assert_array_equal(index.merge(planes), values)
    shifted = values.astype(int) + 128
    np.testing.assert_array_equal(planes[0, :, 0] & 15, shifted[:, 0] >> 4)
    np.testing.assert_array_equal(planes[1, :, 1] >> 4, shifted[:, 3] & 15)
    np.testing.assert_array_equal(index.merge(planes[:1]), (shifted >> 4 << 4) - 120)


def test_rows_without_a_normal_scale_are_all_error():
    weight = np.array([[0.0, 0.0], [1e-40, 0.0], [3e-37, 1e-38], [-0.0, 2e38]], np.float32)
    packed, scale, error = assert_packed_alike(weight)
    assert scale[0] == error[0] == 0
    assert scale[1] == 0 and error[1] == np.finfo(np.float32).smallest_normal
    assert scale[2] == 0 and error[2] >= 3e-37
    assert scale[3] > 0 and index.merge(packed)[0, 0, 3, 1] == 127


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pack", [index.pack, _core.pack_rows])
def test_refuses_values_that_are_not_finite(pack, bad):
    weight = np.ones((50, 3), np.float32)
    weight[33, 1] = bad
    with pytest.raises(DataError, match="row 33"):
        pack(weight)


@pytest.mark.parametrize("pack", [index.pack, _core.pack_rows])
def test_refuses_empty_and_flat_arrays(pack):
    for shape in [(0, 3), (3, 0), (3,)]:
        with pytest.raises(DataError, match="non-empty float32 matrix"):
            pack(np.ones(shape, np.float32))


def test_refuses_other_types():
    with pytest.raises(DataError, match="float64"):
        index.pack(np.ones((3, 3)))
    with pytest.raises(TypeError):
        _core.pack_rows(np.ones((3, 3)))
