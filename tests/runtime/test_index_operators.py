"""The kernels of an output layer against float64, on every instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import DataError
from qcompile.runtime import _core
from qcompile.runtime.reference import head, index

ISAS = _core.supported_isas()


def make_head(weight: np.ndarray, bias: np.ndarray, rough: str = "if large") -> "_core.Head":
    return _core.Head(weight, bias, *_core.pack_rows(weight), rough)


def random_layer(rows: int, depth: int, queries: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, depth)).astype(np.float32)
    bias = rng.normal(size=rows).astype(np.float32)
    return weight, bias, rng.normal(size=(queries, depth)).astype(np.float32)


def assert_top_k(weight, bias, hidden, ks, isas=ISAS):
    layers = [make_head(weight, bias, rough) for rough in ("never", "always")]
    for k in ks:
        scores, ids = head.linear_top_k(hidden, weight, bias, k)
        for isa in isas:
            for layer in layers:
                for threads in (1, 2):
                    found = layer.top_k(hidden, k, isa, threads)
                    np.testing.assert_array_equal(found[1], ids, strict=True)
                    np.testing.assert_array_equal(found[0], scores, strict=True)
        # Few vectors at a time take the rough rows.
        for first in range(0, min(len(hidden), 9), 3):
            some = slice(first, first + 3)
            for isa in isas:
                found = layers[1].top_k(hidden[some], k, isa, 2)
                np.testing.assert_array_equal(found[1], ids[some], strict=True)
                np.testing.assert_array_equal(found[0], scores[some], strict=True)


@pytest.mark.parametrize(
    ("rows", "depth"),
    [(1, 1), (15, 3), (37, 1), (1000, 127), (2065, 128), (300, 1024), (5000, 6)],
)
def test_top_k_is_exact(rows, depth):
    weight, bias, hidden = random_layer(rows, depth, queries=9)
    assert_top_k(weight, bias, hidden, sorted({1, min(7, rows), max(1, rows // 8), rows}))


def test_top_k_of_many_queries():
    weight, bias, hidden = random_layer(1500, 40, queries=150)
    assert_top_k(weight, bias, np.maximum(hidden, 0), [1, 10])


def test_top_k_with_near_ties():
    # Rows that differ by less than the int8 error, so that only rescoring tells them apart.
    rng = np.random.default_rng(1)
    weight = np.repeat(rng.normal(size=(1, 64)), 3000, axis=0)
    weight += 1e-4 * rng.normal(size=weight.shape)
    hidden = rng.normal(size=(6, 64)).astype(np.float32)
    assert_top_k(weight.astype(np.float32), np.zeros(3000, np.float32), hidden, [1, 5, 40])


SIGNS = np.where(np.arange(64) % 3, 1.0, -1.0)


def misleading_rows(lead: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows that int8 rounds as far down as it can, and rows that it rounds up.

    The error of every row is parallel to the query SIGNS / 8, so the bound is reached. Scores are
    in units of the width of the bound: the first kind is 1 above its int8 score, the second 1
    below, and ``lead`` apart by their int8 scores.
    """
    shift = 0.49 * SIGNS
    base = np.zeros(64)
    base[0] = 127  # makes the scale 1
    rows = np.tile(base, (2, 1))
    lead_steps = round(lead * 0.49 * 63)
    rows[1, 1 : 1 + lead_steps] += SIGNS[1 : 1 + lead_steps]
    rows[0, 1:] += shift[1:]
    rows[1, 1:] -= shift[1:]
    return rows[0], rows[1]


@pytest.mark.parametrize("place", [0, 5, 3000, 4999])
@pytest.mark.parametrize("lead", [0.2, 1.0, 1.98])
def test_top_k_where_rows_reach_the_error_bound(place, lead):
    underrated, overrated = misleading_rows(lead)
    weight = np.tile(overrated, (5000, 1)).astype(np.float32)
    weight[place] = underrated
    hidden = (SIGNS / 8).astype(np.float32)[None]
    assert head.linear_top_k(hidden, weight, np.zeros(5000), 1)[1][0, 0] == place
    packed, scale, _ = _core.pack_rows(weight)
    rough = index.unpack(index.merge(packed), 5000, 64) @ (SIGNS / 8) * scale
    assert rough[place] < rough[1 - place % 2]  # the int8 scores alone would be wrong
    assert_top_k(weight, np.zeros(5000, np.float32), hidden, [1, 2, 40])


@pytest.mark.parametrize("place", [0, 5, 3000, 4999])
def test_top_k_where_the_query_reaches_the_error_bound(place):
    # Rows are exact, and what int8 takes from the query is parallel or opposite to them.
    query = np.zeros(65)
    query[0], query[1:] = 127, 50 * np.where(np.arange(64) % 2, 1, -1) * SIGNS + 0.49 * SIGNS
    rows = np.zeros((5000, 65))
    rows[:, 0] = 127
    rows[:, 1:] = -100 * SIGNS
    rows[:, 2] += 20 * np.sign(query[2])
    rows[place, 1:] = 100 * SIGNS
    hidden, weight = query.astype(np.float32)[None], rows.astype(np.float32)
    assert head.linear_top_k(hidden, weight, np.zeros(5000), 1)[1][0, 0] == place
    rough = rows @ np.rint(query)
    assert rough[place] < rough[1 - place % 2]
    assert_top_k(weight, np.zeros(5000, np.float32), hidden, [1, 2, 40])


def test_softmax_whose_improbable_rows_all_reach_the_error_bound():
    # Each is too improbable to be rescored, but int8 misses half of what they are together.
    weight = np.zeros((20_000, 64))
    weight[1:, 0], weight[1:, 1] = 127 * SIGNS[0], -127 * SIGNS[1]
    weight[1:, 2:] = 0.49 * SIGNS[2:]
    weight = (0.2 * weight).astype(np.float32)
    bias = np.full(20_000, -18.8, np.float32)
    bias[0] = 0
    hidden = (SIGNS / 8).astype(np.float32)[None]
    expected = head.linear_softmax(hidden, weight, bias)
    assert expected[0, 0] < 1 - 1e-4
    for isa in ISAS:
        found = make_head(weight, bias).softmax(hidden, isa)
        np.testing.assert_allclose(found[0, 0], expected[0, 0], rtol=1e-5)


def test_top_k_with_duplicated_rows_prefers_small_ids():
    weight, bias, hidden = random_layer(40, 33)
    weight, bias = np.tile(weight, (700, 1)), np.tile(bias, 700)
    assert_top_k(weight, bias, hidden, [1, 3, 900])


def test_top_k_when_every_row_is_the_same():
    weight, bias = np.ones((40_000, 5), np.float32), np.ones(40_000, np.float32)
    hidden = np.array([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [-1, 1, -1, 1, -1]], np.float32)
    assert_top_k(weight, bias, hidden, [1, 10])


@pytest.mark.parametrize("every", [1, 2, 7])
def test_top_k_with_rows_of_zeros(every):
    weight, bias, hidden = random_layer(3000, 33)
    weight[::every] = 0
    assert_top_k(weight, bias, hidden, [1, 10])
    assert_top_k(weight, bias * 0, hidden, [1, 10])


def test_top_k_with_rows_in_ascending_order():
    # Every row beats all before it.
    weight, bias, hidden = random_layer(20_000, 16)
    order = np.argsort(weight @ hidden[0] + bias)
    assert_top_k(weight[order], bias[order], hidden[:4], [1, 10])


def test_top_k_that_gives_rough_rows_up():
    # Nearly equal rows: four bits tell none of them apart, eight bits do, or all are scored.
    rng = np.random.default_rng(3)
    for spread in (0.1, 0.001):
        weight = rng.normal(size=64) + spread * rng.normal(size=(70_000, 64))
        hidden = rng.normal(size=(2, 64)).astype(np.float32)
        assert_top_k(weight.astype(np.float32), np.zeros(70_000, np.float32), hidden, [1, 10])


def test_top_k_with_huge_spread_of_norms_and_biases():
    weight, bias, hidden = random_layer(3000, 50)
    rng = np.random.default_rng(2)
    weight *= 10.0 ** rng.uniform(-20, 15, size=(3000, 1)).astype(np.float32)
    bias *= 10.0 ** rng.uniform(-20, 15, size=3000).astype(np.float32)
    assert_top_k(weight, bias, hidden, [1, 20])


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e18, 3e37])
def test_top_k_at_the_ends_of_the_float_range(size):
    weight, bias, hidden = random_layer(500, 20)
    for scaled in (weight * np.float32(size), weight):
        assert_top_k(scaled, bias * 0, hidden * np.float32(size), [1, 8])


def test_top_k_of_a_zero_vector_ranks_the_biases():
    weight, bias, hidden = random_layer(500, 20)
    assert_top_k(weight, bias, hidden * 0, [1, 8])


def test_infinite_and_nan_biases():
    weight, bias, hidden = random_layer(900, 20)
    bias[::2] = -np.inf
    assert_top_k(weight, bias, hidden, [1, 8])
    bias[1:899] = -np.inf
    assert_top_k(weight, bias, hidden, [1, 8])  # fewer than k are finite
    bias[700], bias[5] = np.inf, np.nan
    assert_top_k(weight, bias, hidden, [1, 8])


def test_queries_that_are_not_finite_do_not_disturb_others():
    weight, bias, hidden = random_layer(900, 20)
    hidden[1, 3], hidden[2, 0], hidden[4] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        assert_top_k(weight, bias, hidden, [1, 8, 900])
        expected = head.linear_softmax(hidden, weight, bias)
    layer = make_head(weight, bias)
    for isa in ISAS:
        found = layer.softmax(hidden, isa)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_allclose(found[[0, 3]], expected[[0, 3]], rtol=1e-4, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 100.0]),
    st.booleans(),
)
def test_top_k_is_exact_whatever_the_layer(rows, depth, seed, bias_size, coarse):
    rng = np.random.default_rng(seed)
    weight, hidden = rng.normal(size=(rows, depth)), rng.normal(size=(3, depth))
    if coarse:  # many exact ties
        weight, hidden = np.rint(weight), np.rint(hidden)
    bias = np.rint(rng.normal(size=rows) * bias_size)
    k = int(rng.integers(1, rows + 1))
    arrays = [array.astype(np.float32) for array in (weight, bias, hidden)]
    assert_top_k(*arrays, [k])


@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (33, 3), (1000, 127), (5000, 120)])
def test_softmax_keeps_its_promise(rows, depth):
    weight, bias, hidden = random_layer(rows, depth, queries=20)
    layer = make_head(weight, bias)
    # From flat distributions, which are computed densely, to peaked ones, which are scanned.
    for size in (0.0, 0.05, 1.0, 4.0):
        scaled = (hidden * np.float32(size)).astype(np.float32)
        expected = head.linear_softmax(scaled, weight, bias)
        # fp32 scores of this magnitude are off by so much, and so is a probability, relatively.
        rounding = 2.0**-22 * np.abs(scaled).sum(axis=1).max() * np.abs(weight).max() + 1e-6
        results = [layer.softmax(scaled, isa, threads) for isa in ISAS for threads in (1, 2)]
        for found in results:
            np.testing.assert_array_equal(found, results[0])
            np.testing.assert_allclose(found, expected, rtol=1e-5 + rounding, atol=1e-7)
            np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
            np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("rows", [6000, 40_000])
def test_softmax_of_one_query_equals_that_of_many(rows):
    weight, bias, hidden = random_layer(rows, 64, queries=30)
    layer = make_head(weight, bias)
    together = layer.softmax(hidden * 3)
    # Each is within 1e-5 and the rounding of fp32 scores of the truth; see above.
    rounding = 2.0**-22 * 3 * np.abs(hidden).sum(axis=1).max() * np.abs(weight).max()
    for i in range(30):
        alone = layer.softmax(hidden[i : i + 1] * 3, threads=2)[0]
        np.testing.assert_allclose(alone, together[i], rtol=2e-5 + 2 * rounding, atol=1e-7)


@pytest.mark.parametrize("queries", [0, 1, 3, 4, 5, 13, 70])
@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (35, 3), (100, 16), (333, 127), (40, 1030)])
def test_linear_is_accurate_and_alike_everywhere(rows, depth, queries):
    weight, bias, hidden = random_layer(rows, depth, queries)
    expected = head.linear(hidden, weight, bias)
    results = [
        _core.linear(hidden, weight, bias, isa, threads) for isa in ISAS for threads in (1, 2)
    ]
    for found in results:
        np.testing.assert_array_equal(found, results[0])
    np.testing.assert_allclose(results[0], expected, rtol=1e-5, atol=2e-6 * depth)


@pytest.mark.parametrize("isa", ISAS)
def test_exponentials_are_within_two_units(isa):
    values = np.linspace(-87.3, 80, 400_001).astype(np.float32)
    found, total = _core.exponentials(values, 0.0, isa)
    exact = np.exp(values.astype(np.float64))
    assert (np.abs(found - exact) / np.spacing(exact.astype(np.float32))).max() < 2
    assert abs(total / exact.sum() - 1) < 1e-6
    rest, _ = _core.exponentials(np.array([-88, -1e30, -np.inf, np.nan], np.float32), 0.0, isa)
    np.testing.assert_array_equal(rest, [0, 0, 0, np.nan])


def test_refuses_what_does_not_fit():
    weight, bias, hidden = random_layer(40, 8)
    packed = _core.pack_rows(weight)
    with pytest.raises(DataError, match="bias"):
        _core.Head(weight, bias[:-1].copy(), *packed)
    with pytest.raises(DataError, match="packed"):
        _core.Head(weight, bias, packed[0][:, :2].copy(), *packed[1:])
    for name, at in (("scale", 1), ("error", 2)):
        arrays = [array.copy() for array in packed]
        arrays[at][7] = np.nan
        with pytest.raises(DataError, match=name):
            _core.Head(weight, bias, *arrays)
    layer = make_head(weight, bias)
    for k in (0, 41):
        with pytest.raises(DataError, match="expected 1 to 40"):
            layer.top_k(hidden, k)
    with pytest.raises(DataError, match="hidden"):
        layer.top_k(hidden[:, :7].copy(), 1)
    with pytest.raises(DataError, match="unknown instruction set"):
        layer.softmax(hidden, isa="sse9")
