"""Recall and its intervals."""

import numpy as np
import pytest
from scipy import stats

from qcompile.calibration.recall import queries_needed, recall, shares


def test_shares_count_equal_scores_as_found():
    best = np.float32([[5, 4, 4, 1]])
    found = np.float32([[5, 4, 1, 0]])
    assert shares(found, best, 1).tolist() == [1.0]
    assert shares(found, best, 2).tolist() == [1.0]
    assert shares(found, best, 3).tolist() == pytest.approx([2 / 3])
    assert shares(found, best, 4).tolist() == pytest.approx([3 / 4])


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (95, 100), (1, 3)])
def test_the_interval_is_that_of_clopper_and_pearson(hits, count):
    values = np.r_[np.ones(hits), np.zeros(count - hits)]
    found = recall(values, np.arange(count), 1)
    exact = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose((found.low, found.high), exact, atol=1e-9)
    one_sided = stats.binomtest(hits, count, alternative="greater").proportion_ci(0.95)
    np.testing.assert_allclose(found.bound, one_sided.low, atol=1e-9)


def test_positions_of_one_row_that_agree_count_as_one():
    by_row = np.repeat([1.0, 0.0, 1.0, 1.0], 50)
    found = recall(by_row, np.repeat(np.arange(4), 50), 1)
    assert found.independent == pytest.approx(4)
    apart = recall(by_row, np.arange(200), 1)
    assert apart.independent == 200
    assert found.bound < apart.bound


@pytest.mark.parametrize("promised", [0.5, 0.95, 0.99])
def test_so_many_queries_prove_a_promise_and_no_fewer(promised):
    count = queries_needed(promised)
    assert recall(np.ones(count), np.arange(count), 1).bound >= promised
    assert recall(np.ones(count - 1), np.arange(count - 1), 1).bound < promised
