"""The order of examples is a permutation, and a different one for each seed and epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qcompile.training.order import Permutation


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_number_occurs_once(size, seed, epoch):
    order = Permutation(size, seed, epoch)(0, size)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(size))


@given(size=st.integers(1, 500), cut=st.integers(0, 500), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_part_is_a_part_of_the_whole_and_ends_with_it(size, cut, seed):
    order = Permutation(size, seed, 3)
    whole = order(0, size)
    assert np.array_equal(order(cut, cut + 50), whole[cut : cut + 50])


def test_it_needs_no_memory_for_sizes_beyond_32_bits():
    order = Permutation(2**40 + 7, seed=1, epoch=0)
    found = order(2**39, 2**39 + 1000)
    assert len(np.unique(found)) == 1000
    assert found.min() >= 0
    assert found.max() < 2**40 + 7


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (2**40, 0)])
def test_seed_and_epoch_change_the_order(other):
    first = Permutation(1000, 0, 0)(0, 1000)
    second = Permutation(1000, *other)(0, 1000)
    # Two random permutations agree in one place on average.
    assert (first == second).sum() < 10


def test_places_are_uniform_and_neighbours_independent():
    size, runs = 16, 4000
    orders = np.stack([Permutation(size, seed, 5)(0, size) for seed in range(runs)])
    for place in (0, 7, 15):
        counts = np.bincount(orders[:, place], minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-4
    gaps = (orders[:, 1] - orders[:, 0]) % size
    assert stats.chisquare(np.bincount(gaps, minlength=size)[1:]).pvalue > 1e-4
