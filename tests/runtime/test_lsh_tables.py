"""Hash functions and tables of the C++ core against theory and the NumPy reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import DataError
from qcompile.runtime import _core
from qcompile.runtime.reference import lsh as reference

FAMILIES = ("simhash", "wta", "dwta", "doph")
ISAS = _core.supported_isas()


def make(dimension=24, rows=50, family="dwta", tables=4, hashes=3, bucket=8, policy="fifo", seed=1):
    return _core.LshTables(dimension, rows, family, tables, hashes, bucket, policy, seed)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("count", "dimension"), [(1, 1), (5, 7), (16, 8), (33, 128), (40, 45)])
@pytest.mark.parametrize("hashes", [1, 4, 9])
def test_keys_equal_the_reference(isa, family, count, dimension, hashes):
    vectors = normal(count, dimension)
    vectors[::3] *= np.random.default_rng(1).random(vectors[::3].shape) < 0.1  # empty bins
    vectors[-1] = 0
    tables = make(dimension, rows=50, family=family, hashes=hashes, seed=7)
    expected = reference.keys(vectors, 50, family, 4, hashes, seed=7)
    assert np.array_equal(tables.keys(vectors, isa=isa), expected)
    assert tables.key_bits == reference.fold_bits(50, family, hashes)


def test_dwta_ranks_neighbours_by_nearness():
    base = normal(200, 128, seed=4)
    core = make(128, tables=100, hashes=1)
    rates = []
    for noise in (0.1, 0.5, 1.0, 3.0):
        near = base + noise * normal(200, 128, seed=5)
        rates.append((core.keys(base) == core.keys(near)).mean())
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.85
    independent = (core.keys(base) == core.keys(normal(200, 128, seed=6))).mean()
    # Independent vectors agree on the place of a bin's maximum once in eight times.
    assert independent == pytest.approx(1 / 8, abs=0.015)


def test_dwta_ignores_scale_and_empty_coordinates_lend_codes():
    vectors = np.maximum(normal(64, 96), 0)
    core = make(96, tables=30, hashes=2)
    assert np.array_equal(core.keys(vectors), core.keys(vectors * 8))
    single = np.zeros((1, 96), dtype=np.float32)
    single[0, 5] = 1
    keys = core.keys(single)
    assert np.array_equal(keys, reference.keys(single, 50, "dwta", 30, 2, seed=1))
    assert len(np.unique(keys)) > 1


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 120),
    dimension=st.integers(1, 40),
    family=st.sampled_from(FAMILIES),
    hashes=st.integers(1, 5),
    bucket=st.integers(1, 12),
    policy=st.sampled_from(["fifo", "reservoir"]),
    seed=st.integers(0, 2**64 - 1),
    generation=st.integers(0, 5),
    threads=st.sampled_from([1, 3]),
)
def test_tables_equal_the_reference(
    rows, dimension, family, hashes, bucket, policy, seed, generation, threads
):
    matrix = normal(rows, dimension, seed=seed % 1000)
    core = make(dimension, rows, family, 3, hashes, bucket, policy, seed)
    core.build(matrix, generation, threads)
    row_keys = reference.keys(matrix, rows, family, 3, hashes, seed)
    expected = reference.build(row_keys, bucket, policy, seed, generation)
    for table in range(3):
        for key in range(min(1 << core.key_bits, 300)):
            assert core.bucket(table, key).tolist() == expected[table].get(key, [])
        for key, kept in expected[table].items():
            assert core.bucket(table, key).tolist() == kept


def test_generations_draw_other_samples():
    matrix = np.repeat(normal(1, 8), 100, axis=0)
    core = make(8, 100, tables=1, hashes=1, bucket=10, policy="reservoir")
    key = int(core.keys(matrix[:1])[0, 0])
    kept = []
    for generation in (0, 1, 0):
        core.build(matrix, generation)
        kept.append(core.bucket(0, key).tolist())
    assert kept[0] == kept[2] != kept[1]


def test_long_keys_are_folded_into_bounded_tables():
    core = make(16, rows=1000, family="simhash", hashes=63, tables=2)
    assert core.key_bits == 11
    matrix = normal(1000, 16)
    assert core.keys(matrix).max() < 2**11
    core.build(matrix)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_that_are_no_numbers_hash_to_some_key(family, value):
    vectors = normal(20, 24)
    vectors[::2, ::3] = value
    core = make(family=family)
    keys = core.keys(vectors)
    assert keys.max() < 1 << core.key_bits
    assert np.array_equal(keys, core.keys(vectors, isa="scalar"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dimension": 0},
        {"rows": 0},
        {"rows": 2**31},
        {"tables": 0},
        {"tables": 5000},
        {"hashes": 22},
        {"bucket": 0},
        {"family": "minhash"},
        {"policy": "lifo"},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(DataError):
        make(**wrong)


def test_misuse_is_refused():
    core = make()
    with pytest.raises(DataError, match="build"):
        core.bucket(0, 0)
    with pytest.raises(DataError, match="shape"):
        core.build(normal(50, 23))
    with pytest.raises(DataError, match="shape"):
        core.keys(normal(3, 25))
    core.build(normal(50, 24))
    with pytest.raises(DataError, match="bucket"):
        core.bucket(4, 0)
    with pytest.raises(DataError, match="bucket"):
        core.bucket(0, 1 << core.key_bits)
