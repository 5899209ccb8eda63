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


def assert_packed_alike(weight: np.ndarray) -> index.Packed:
    expected = index.pack(weight)
    for found, array in zip(_core.pack_rows(weight), expected, strict=True):
        np.testing.assert_array_equal(found, array, strict=True)
    return expected


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_agrees_with_numpy_and_bounds_the_error(weight):
    packed = assert_packed_alike(weight)
    rows = index.unpack(packed.packed, *weight.shape).astype(np.float64)
    residual = weight.astype(np.float64) - rows * packed.scale[:, None].astype(np.float64)
    assert (np.sqrt((residual**2).sum(axis=1)) <= packed.error).all()
    assert np.abs(rows).max() <= 127


@pytest.mark.parametrize("shape", [(1, 1), (16, 4), (17, 5), (1000, 127), (70, 1024)])
def test_agrees_with_numpy_on_many_shapes(shape):
    rng = np.random.default_rng(0)
    packed = assert_packed_alike(rng.normal(size=shape).astype(np.float32))
    assert packed.packed.shape == (-(-shape[0] // 16), -(-shape[1] // 4), 16, 4)


def test_layout_is_blocks_of_rows_of_four_coordinates():
    weight = np.arange(1, 1 + 18 * 6, dtype=np.float32).reshape(18, 6)
    packed, scale, _ = index.pack(weight)
    for row in range(18):
        for column in range(6):
            at = (row // ops.BLOCK_ROWS, column // ops.BLOCK_DEPTH, row % 16, column % 4)
            assert abs(packed[at] * scale[row] - weight[row, column]) <= scale[row] / 2 * 1.001
    assert not packed[1, :, 2:].any() and not packed[:, 1, :, 2:].any()


def test_rows_without_a_normal_scale_are_all_error():
    weight = np.array([[0.0, 0.0], [1e-40, 0.0], [3e-37, 1e-38], [-0.0, 2e38]], np.float32)
    packed, scale, error = assert_packed_alike(weight)
    assert scale[0] == error[0] == 0
    assert scale[1] == 0 and error[1] == np.finfo(np.float32).smallest_normal
    assert scale[2] == 0 and error[2] >= 3e-37
    assert scale[3] > 0 and packed[0, 0, 3, 1] == 127


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
