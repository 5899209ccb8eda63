"""Builds of hash tables that save work: they end with the tables of a plain build, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import DataError
from qcompile.runtime import _core
from qcompile.runtime.reference import lsh as reference

FAMILIES = ("simhash", "wta", "dwta", "doph")
D, N, L, K, BUCKET = 21, 150, 5, 3, 6


def make(incremental=False, family="dwta", policy="reservoir", seed=9, rows=N):
    return _core.LshTables(D, rows, family, L, K, BUCKET, policy, seed, incremental=incremental)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def contents(tables):
    return [
        [tables.bucket(table, key).tolist() for key in range(1 << tables.key_bits)]
        for table in range(L)
    ]


def expected(weight, family, policy, seed, generation=0, draw=0):
    functions = reference.draw_seed(seed, draw)
    keys = reference.keys(weight, len(weight), family, L, K, functions)
    tables = reference.build(keys, BUCKET, policy, seed, generation)
    buckets = range(1 << reference.fold_bits(len(weight), family, K))
    return [[table.get(key, []) for key in buckets] for table in tables]


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    policy=st.sampled_from(["fifo", "reservoir"]),
    changed=st.lists(st.integers(0, N - 1), max_size=40, unique=True),
    renewed=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    threads=st.sampled_from([1, 3]),
)
def test_an_incremental_build_equals_the_reference(family, policy, changed, renewed, seed, threads):
    weight = normal(N, D, seed=seed % 997)
    tables = make(True, family, policy, seed)
    tables.build(weight, 0, threads)
    assert tables.hashed_rows == N
    weight[changed] += normal(len(changed), D, seed=1)
    tables.build(weight, 1, threads, draw=int(renewed))
    assert tables.hashed_rows == (N if renewed else len(changed))
    assert contents(tables) == expected(weight, family, policy, seed, 1, int(renewed))
    queries = reference.keys(weight, N, family, L, K, reference.draw_seed(seed, int(renewed)))
    assert np.array_equal(tables.keys(weight), queries)


def test_any_change_of_a_row_is_seen():
    weight = normal(N, D)
    tables = make(True)
    tables.build(weight)
    bits = weight.view(np.uint32)
    rng = np.random.default_rng(0)
    for change in (1, 1 << 22, 1 << 31):
        for columns in ([0], [D - 1], [2, 3], [1, 4], list(range(D))):
            row = int(rng.integers(N))
            bits[row, columns] ^= change
            tables.build(weight)
            assert tables.hashed_rows == 1
    swapped = [[3, 7], [7, 3]]
    weight[5, swapped[0]] = weight[5, swapped[1]]
    tables.build(weight)
    assert tables.hashed_rows == 1
    tables.build(weight)
    assert tables.hashed_rows == 0


def test_rows_of_zeros_are_hashed_too():
    weight = np.zeros((N, D), np.float32)
    tables = make(True)
    tables.build(weight)
    assert tables.hashed_rows == N
    assert contents(tables) == expected(weight, "dwta", "reservoir", 9)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("slices", [1, 2, 3, 7, 40])
def test_a_build_in_slices_hashes_each_row_once_as_it_was(incremental, slices):
    first, later = normal(N, D, seed=1), normal(N, D, seed=2)
    tables = make(incremental)
    tables.build(first)
    before = contents(tables)
    tables.begin(slices, generation=4)
    weight, seen = first.copy(), np.empty_like(first)
    for i in range(slices):
        weight[i % N] = later[i % N]  # training goes on
        low, high = (min(N, 2 * N * (i + done) // slices) for done in (0, 1))
        seen[low:high] = weight[low:high]
        assert tables.building
        assert contents(tables) == before  # nobody sees a half-built table
        assert tables.advance(weight, 2) == (i == slices - 1)
    assert not tables.building
    assert contents(tables) == expected(seen, "dwta", "reservoir", 9, 4)
    # What changed after it was hashed is found by the next build.
    tables.build(weight, 5)
    assert contents(tables) == expected(weight, "dwta", "reservoir", 9, 5)


@pytest.mark.parametrize("incremental", [False, True])
def test_new_functions_serve_only_when_their_tables_are_ready(incremental):
    weight = normal(N, D)
    tables = make(incremental)
    tables.build(weight)
    old = tables.keys(weight[:9])
    tables.begin(3, generation=1, draw=1)
    for _ in range(3):
        assert np.array_equal(tables.keys(weight[:9]), old)
        tables.advance(weight)
    assert not np.array_equal(tables.keys(weight[:9]), old)
    assert contents(tables) == expected(weight, "dwta", "reservoir", 9, 1, 1)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("draw", [0, 1])
def test_a_build_in_slices_can_be_given_up(incremental, draw):
    weight = normal(N, D)
    tables = make(incremental)
    tables.build(weight)
    tables.begin(9, generation=1, draw=draw)
    weight[:70] += 1
    for _ in range(4):
        tables.advance(weight)
    weight[60:80] -= 3
    tables.build(weight, 2)
    assert not tables.building
    assert contents(tables) == expected(weight, "dwta", "reservoir", 9, 2)
    with pytest.raises(DataError, match="begin"):
        tables.advance(weight)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_weights_hash_as_the_floats_that_they_are(family, incremental):
    weight = torch.from_numpy(normal(N, D)).bfloat16()
    tables = make(incremental, family)
    tables.build(weight)
    assert contents(tables) == expected(weight.float().numpy(), family, "reservoir", 9)


def test_many_tables_are_built_in_groups():
    # Four bytes for each of 20 × 2^20 keys exceed a group's memory. Few rows are distinct, so that
    # the reference need hash only those.
    rows, distinct = 1 << 20, 7
    base = normal(distinct, 4)
    weight = np.tile(base, (rows // distinct + 1, 1))[:rows].copy()
    tables = _core.LshTables(4, rows, "simhash", 20, 18, 3, "fifo", 0)
    tables.build(weight, 0, 2)
    keys = reference.keys(base, rows, "simhash", 20, 18, 0)
    last = [max(r for r in range(rows - distinct, rows) if r % distinct == i) for i in range(7)]
    for table in range(20):
        for key in set(keys[table].tolist()):
            members = [i for i in range(distinct) if keys[table, i] == key]
            held = tables.bucket(table, key).tolist()
            newest = sorted(last[i] - distinct * k for i in members for k in range(3))[-3:]
            assert sorted(held) == newest


def test_occupancy_counts_every_bucket():
    weight = normal(N, D)
    tables = make(True)
    assert tables.occupancy()["table_bytes"] == 0
    tables.build(weight)
    found = tables.occupancy()
    sizes = [len(bucket) for table in contents(tables) for bucket in table]
    assert found["buckets_by_rows"].tolist() == np.bincount(sizes).tolist()
    assert found["dropped"] == L * N - sum(sizes)
    assert found["table_bytes"] >= 4 * (sum(sizes) + len(sizes))
    assert found["key_bytes"] == 2 * L * N + 8 * N  # two bytes a key, eight a row


@pytest.mark.parametrize("slices", [0, -1, 2**20 + 1])
def test_a_number_of_slices_out_of_range_is_refused(slices):
    with pytest.raises(DataError, match="slices"):
        make().begin(slices)


def test_matrices_of_other_shapes_and_types_are_refused():
    tables = make()
    with pytest.raises(DataError, match="shape"):
        tables.build(normal(N, D + 1))
    with pytest.raises(DataError, match="float32 or bfloat16"):
        tables.build(normal(N, D).astype(np.float64))
    tables.begin(2)
    with pytest.raises(DataError, match="shape"):
        tables.advance(normal(N - 1, D))
