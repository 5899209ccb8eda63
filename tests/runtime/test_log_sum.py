"""The k best together with the logarithm of the partition function, on every instruction set."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcompile
from qcompile import ops
from qcompile.errors import DataError
from qcompile.runtime import _core
from qcompile.runtime.reference import head

ISAS = _core.supported_isas()
CPU = ["CPUExecutionProvider"]


def layer_of(weight: np.ndarray, bias: np.ndarray) -> "_core.Head":
    return _core.Head(weight, bias, *_core.pack_rows(weight))


def random_layer(rows: int, depth: int, queries: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, depth)).astype(np.float32)
    bias = rng.normal(size=rows).astype(np.float32)
    return weight, bias, rng.normal(size=(queries, depth)).astype(np.float32)


def assert_log_sum(weight, bias, hidden, k, slack=0.0):
    """Hold all answers against float64, and against each other.

    ``slack`` is what fp32 scores may be off where they are all computed.
    """
    with np.errstate(invalid="ignore"):
        scores, ids = head.linear_top_k(hidden, weight, bias, k)
        expected = head.log_sum(hidden, weight, bias)
    layer = layer_of(weight, bias)
    first = layer.top_k_log_sum(hidden, k, ISAS[0], 1)
    for isa in ISAS:
        for threads in (1, 2, 3):
            found = layer.top_k_log_sum(hidden, k, isa, threads)
            np.testing.assert_array_equal(found[0], scores, strict=True)
            np.testing.assert_array_equal(found[1], ids, strict=True)
            np.testing.assert_array_equal(found[2], first[2], strict=True)
    np.testing.assert_allclose(first[2], expected, rtol=2.0**-22, atol=1.1e-5 + slack)
    for i in range(min(len(hidden), 3)):
        alone = layer.top_k_log_sum(hidden[i : i + 1], k)
        np.testing.assert_array_equal(alone[1], ids[i : i + 1])
        np.testing.assert_allclose(
            alone[2], expected[i : i + 1], rtol=2.0**-22, atol=1.1e-5 + slack
        )


@pytest.mark.parametrize(
    ("rows", "depth"), [(1, 1), (15, 3), (37, 1), (1000, 127), (2065, 128), (300, 1024), (9001, 6)]
)
@pytest.mark.parametrize("size", [0.0, 0.05, 1.0, 4.0])
def test_from_flat_distributions_to_peaked_ones(rows, depth, size):
    weight, bias, hidden = random_layer(rows, depth, queries=9)
    hidden = (hidden * np.float32(size)).astype(np.float32)
    rounding = 2.0**-22 * np.abs(hidden).sum(axis=1).max() * np.abs(weight).max()
    for k in sorted({1, min(7, rows), max(1, rows // 8), rows}):
        assert_log_sum(weight, bias, hidden, k, rounding)


def test_of_more_queries_than_share_a_pass():
    weight, bias, hidden = random_layer(1500, 40, queries=150)
    assert_log_sum(weight, bias, np.maximum(hidden, 0) * 3, 10, 1e-5)


def test_of_no_queries():
    weight, bias, hidden = random_layer(700, 8, queries=0)
    scores, ids, log_sum = layer_of(weight, bias).top_k_log_sum(hidden, 3)
    assert scores.shape == ids.shape == (0, 3)
    assert log_sum.shape == (0, 1)


@pytest.mark.parametrize("depth", [4, 64])
def test_where_improbable_rows_outweigh_the_best(depth):
    # 40,000 rows far below the best one are most of the sum, and int8 is wrong about each.
    rng = np.random.default_rng(5)
    weight = (0.3 * rng.normal(size=(40_000, depth))).astype(np.float32)
    bias = np.full(40_000, -9.0, np.float32)
    bias[123] = 1.5
    hidden = rng.normal(size=(5, depth)).astype(np.float32)
    assert_log_sum(weight, bias, hidden, 4, 1e-5)


def test_where_every_improbable_row_reaches_the_error_bound():
    # Each is too improbable to be rescored alone, but int8 misses half of what they are together.
    signs = np.where(np.arange(64) % 3, 1.0, -1.0)
    weight = np.zeros((20_000, 64))
    weight[1:, 0], weight[1:, 1] = 127 * signs[0], -127 * signs[1]
    weight[1:, 2:] = 0.49 * signs[2:]
    bias = np.full(20_000, -18.8, np.float32)
    bias[0] = 0
    hidden = (signs / 8).astype(np.float32)[None]
    assert_log_sum((0.2 * weight).astype(np.float32), bias, hidden, 1)


def test_of_a_layer_whose_rows_are_all_the_same():
    weight, bias = np.ones((20_000, 5), np.float32), np.ones(20_000, np.float32)
    hidden = np.array([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [-1, 1, -1, 1, -1]], np.float32)
    assert_log_sum(weight, bias, hidden, 10)
    found = layer_of(weight, bias).top_k_log_sum(hidden, 1)
    np.testing.assert_allclose(found[2] - found[0], np.log(20_000), rtol=1e-6)


@pytest.mark.parametrize("every", [1, 2, 7])
def test_with_rows_of_zeros_and_no_bias(every):
    weight, bias, hidden = random_layer(3000, 33)
    weight[::every] = 0
    assert_log_sum(weight, bias * 0, 3 * hidden, 8, 1e-5)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e18, 3e37])
def test_at_the_ends_of_the_float_range(size):
    weight, bias, hidden = random_layer(500, 20)
    for scaled in (weight * np.float32(size), weight):
        big = hidden * np.float32(size)
        scores = np.abs(scaled.astype(np.float64) @ big.T.astype(np.float64)).max()
        if scores < np.finfo(np.float32).max:
            assert_log_sum(scaled, bias * 0, big, 3, 1e-6 * scores)


def test_with_scores_too_large_for_an_exponential():
    weight, bias, hidden = random_layer(2500, 16)
    assert_log_sum(weight, bias, 1e4 * hidden, 3, 1e-2)
    assert_log_sum(weight, bias - 1e6, hidden, 3, 1.0)


def test_infinite_and_nan_biases():
    weight, bias, hidden = random_layer(900, 20)
    bias[::2] = -np.inf
    assert_log_sum(weight, bias, 3 * hidden, 8, 1e-5)
    bias[1:899] = -np.inf
    assert_log_sum(weight, bias, 3 * hidden, 8, 1e-5)
    bias[:] = -np.inf
    assert_log_sum(weight, bias, hidden, 1)
    bias[700] = np.inf
    assert_log_sum(weight, bias, hidden, 1)
    bias[5] = np.nan
    assert_log_sum(weight, bias, hidden, 8)


def test_queries_that_are_not_finite_do_not_disturb_others():
    weight, bias, hidden = random_layer(900, 20)
    expected = layer_of(weight, bias).top_k_log_sum(hidden, 3)
    hidden[1, 3], hidden[2, 0] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        best = head.linear_top_k(hidden, weight, bias, 1)[0]
    for isa in ISAS:
        found = layer_of(weight, bias).top_k_log_sum(hidden, 3, isa)
        np.testing.assert_allclose(found[2][[0, 3, 4]], expected[2][[0, 3, 4]], atol=2e-5)
        np.testing.assert_array_equal(found[2][1:3], best[1:3])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 20.0]),
    st.sampled_from([0.1, 1.0, 5.0]),
)
def test_whatever_the_layer(rows, depth, seed, bias_size, size):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, depth)).astype(np.float32)
    hidden = (size * rng.normal(size=(3, depth))).astype(np.float32)
    bias = (rng.normal(size=rows) * bias_size).astype(np.float32)
    assert_log_sum(weight, bias, hidden, int(rng.integers(1, rows + 1)), 1e-4)


def test_refuses_an_impossible_k():
    weight, bias, hidden = random_layer(40, 8)
    for k in (0, 41):
        with pytest.raises(DataError, match="expected 1 to 40"):
            layer_of(weight, bias).top_k_log_sum(hidden, k)


@pytest.fixture
def layer():
    weight, bias, _ = random_layer(1003, 30, seed=3)
    return 2 * weight, bias


def plugin(path: str, **settings: object) -> onnxruntime.InferenceSession:
    options = qcompile.session_options()
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(path, options, providers=CPU)


@pytest.mark.parametrize("shape", [(30,), (1, 30), (4, 30), (2, 3, 30), (0, 30), (2, 0, 30)])
def test_plugin_and_function_body_agree(head_model, layer, shape):
    names = tuple(f"axis{i}" for i in range(len(shape) - 1))
    path = head_model(ops.LINEAR_TOP_K, *layer, shape=(*names, 30), k=5, log_sum=True)
    hidden = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    bodies = onnxruntime.InferenceSession(path, providers=CPU).run(None, {"hidden": hidden})
    kernels = plugin(path).run(None, {"hidden": hidden})
    for body, kernel in zip(bodies, kernels, strict=True):
        assert body.dtype == kernel.dtype and body.shape == kernel.shape
        np.testing.assert_allclose(kernel, body, rtol=1e-5, atol=2e-5)


def test_answers_of_the_plugin_do_not_depend_on_the_number_of_threads(head_model, layer):
    path = head_model(ops.LINEAR_TOP_K, *layer, k=5, log_sum=True)
    hidden = np.random.default_rng(1).normal(size=(37, 30)).astype(np.float32)
    answers = [
        plugin(path, intra_op_num_threads=threads).run(None, {"hidden": hidden})
        for threads in (1, 2, 3)
    ]
    for other in answers[1:]:
        for mine, first in zip(other, answers[0], strict=True):
            np.testing.assert_array_equal(mine, first)


@pytest.mark.parametrize("declare", [True, False])
def test_a_node_may_leave_the_output_out(head_model, layer, declare):
    hidden = np.ones((2, 30), np.float32)
    short = head_model(ops.LINEAR_TOP_K, *layer, k=3, declare=declare, function=declare)
    two = plugin(short).run(None, {"hidden": hidden})
    long = head_model(
        ops.LINEAR_TOP_K, *layer, k=3, declare=declare, function=declare, log_sum=True
    )
    three = plugin(long).run(None, {"hidden": hidden})
    assert (len(two), len(three)) == (2, 3)
    for mine, other in zip(two, three, strict=False):
        np.testing.assert_array_equal(mine, other)


def test_weights_that_are_not_constant_are_summed_densely(head_model, layer):
    path = head_model(
        ops.LINEAR_TOP_K, *layer, k=3, log_sum=True, variable={"weight": ("N", 30), "bias": ("M",)}
    )
    weight, bias = layer
    hidden = np.random.default_rng(3).normal(size=(5, 30)).astype(np.float32)
    found = plugin(path).run(None, {"hidden": hidden, "weight": -weight, "bias": bias})
    np.testing.assert_array_equal(found[1], head.linear_top_k(hidden, -weight, bias, 3)[1])
    np.testing.assert_allclose(found[2], head.log_sum(hidden, -weight, bias), atol=2e-5)
