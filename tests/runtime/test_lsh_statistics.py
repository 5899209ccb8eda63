"""Hash families against the theory of their collision probability; buckets against theirs."""

import numpy as np
import pytest
from scipy import stats

from qcompile.runtime import _core
from qcompile.runtime.reference import collisions

FUNCTIONS, DRAWS = 500, 12


def pairs(count, dimension, cosine, zeros=0.0, seed=0):
    """Pairs of normal vectors at about this cosine; a share of each one's values is zero."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, count, dimension))
    b = cosine * a + np.sqrt(1 - cosine**2) * b
    if zeros:
        a[rng.random(a.shape) < zeros] = 0
        b[rng.random(b.shape) < zeros] = 0
    return a.astype(np.float32), b.astype(np.float32)


def measured(family, a, b, hashes=1):
    """Return how often the core's keys agree, and the standard error over draws of functions."""
    means = []
    for seed in range(DRAWS):
        core = _core.LshTables(a.shape[1], 2**19, family, FUNCTIONS, hashes, 1, "fifo", seed)
        means.append((core.keys(a) == core.keys(b)).mean())
    return np.mean(means), np.std(means, ddof=1) / np.sqrt(DRAWS)


def assert_agree(found, expected, slack=1e-9):
    """Within 4.5 standard errors of both, which chance exceeds once in 150,000 times."""
    assert abs(found[0] - expected[0]) < 4.5 * np.hypot(found[1], expected[1]) + slack


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dimension", [128, 300])
def test_simhash_agrees_as_often_as_the_angle_says(cosine, dimension):
    a, b = pairs(100, dimension, cosine)
    expected = collisions.simhash_agreement(a, b)
    # A third of the coordinates have angles of their own, whose mean is off by a term in 1/d.
    assert_agree(measured("simhash", a, b), (expected, 0), slack=1 / dimension)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dimension", [5, 8, 45, 128])
@pytest.mark.parametrize("family", ["wta", "dwta"])
def test_winners_agree_as_often_as_those_of_random_sets(family, dimension, cosine):
    a, b = pairs(60, dimension, cosine)
    rng = np.random.default_rng(1)
    assert_agree(measured(family, a, b), collisions.wta_agreement(a, b, 400, rng))


def test_winners_of_unrelated_vectors_agree_by_chance_alone():
    a, b = pairs(300, 128, 0.0)
    for family in ("wta", "dwta"):
        assert measured(family, a, b)[0] == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize("zeros", [0.5, 0.9])
@pytest.mark.parametrize("cosine", [0.3, 0.9])
def test_empty_bins_borrow_as_densification_says(cosine, zeros):
    a, b = pairs(60, 128, cosine, zeros)
    rng = np.random.default_rng(2)
    found = measured("dwta", a, b)
    # Lenders are bins of the same few permutations, which share their luck.
    assert_agree(found, collisions.dwta_agreement(a, b, 400, rng), slack=0.005)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9, 0.99])
def test_doph_agrees_with_the_jaccard_similarity_of_the_top_sets(cosine):
    a, b = pairs(60, 128, cosine)
    found = measured("doph", a, b)
    rng = np.random.default_rng(3)
    assert_agree(found, collisions.doph_agreement(a, b, 400, rng), slack=0.005)
    similarity = collisions.jaccard(a, b)
    # A min-hash agrees with probability J. What comes on top is bins that one set misses and the
    # other does not: at most one in four (two of eight are members), of eight places one agrees.
    assert similarity - 4.5 * found[1] < found[0]
    assert found[0] < similarity + (1 - similarity) / 4 + 4.5 * found[1]


@pytest.mark.parametrize("family", ["simhash", "wta"])
@pytest.mark.parametrize("hashes", [2, 4])
def test_a_key_agrees_when_all_its_codes_do(family, hashes):
    a, b = pairs(1, 200, 0.9)
    a, b = np.repeat(a, 50, axis=0), np.repeat(b, 50, axis=0)  # one pair: its p, to the power K
    one, several = measured(family, a, b), measured(family, a, b, hashes)
    error = hashes * one[0] ** (hashes - 1) * one[1]
    assert_agree(several, (one[0] ** hashes, error))


@pytest.mark.parametrize(("family", "bits"), [("simhash", 1), ("wta", 3), ("dwta", 3), ("doph", 3)])
def test_keys_pack_their_codes_side_by_side(family, bits):
    a, _ = pairs(40, 64, 0)
    hashes, tables = 4, 6
    codes = _core.LshTables(64, 2**19, family, tables * hashes, 1, 1, "fifo", 5).keys(a)
    keys = _core.LshTables(64, 2**19, family, tables, hashes, 1, "fifo", 5).keys(a)
    expected = np.zeros_like(keys)
    for h in range(hashes):
        expected = expected << bits | codes[h::hashes]
    assert np.array_equal(keys, expected)
    assert codes.max() == (1 << bits) - 1  # every bit is in use


def same_bucket(count, policy, bucket, seed, tables=400):
    """Return what tables keep of rows that all fall into one bucket, int [tables, bucket]."""
    core = _core.LshTables(8, count, "dwta", tables, 1, bucket, policy, seed)
    row = pairs(1, 8, 0)[0]
    core.build(np.repeat(row, count, axis=0))
    keys = core.keys(row)[:, 0]
    return np.array([core.bucket(table, int(key)) for table, key in enumerate(keys)])


@pytest.mark.parametrize(("count", "bucket"), [(17, 16), (100, 16), (1000, 3)])
def test_a_reservoir_is_a_uniform_sample(count, bucket):
    kept = np.concatenate([same_bucket(count, "reservoir", bucket, seed) for seed in range(5)])
    assert all(len(set(row)) == bucket for row in kept.tolist())
    share = bucket / count
    seen = np.bincount(kept.ravel(), minlength=count)
    # Counts of samples without replacement, of which each has share · (1 − share) variance.
    deviation = (seen - len(kept) * share) ** 2 / (len(kept) * share * (1 - share))
    statistic = deviation.sum() * (count - 1) / count
    assert 1e-4 < stats.chi2.sf(statistic, count - 1) < 1 - 1e-4


def test_pairs_of_rows_share_a_reservoir_as_often_as_chance_has_it():
    count, bucket = 12, 4
    kept = np.concatenate([same_bucket(count, "reservoir", bucket, seed) for seed in range(10)])
    member = np.zeros((len(kept), count))
    np.put_along_axis(member, kept, 1, axis=1)
    together = (member.T @ member)[np.triu_indices(count, 1)] / len(kept)
    share = bucket * (bucket - 1) / (count * (count - 1))
    assert abs(together - share).max() < 5 * np.sqrt(share * (1 - share) / len(kept))


def test_a_fifo_bucket_holds_the_latest_in_the_order_of_a_ring():
    for kept in same_bucket(100, "fifo", 16, 0, tables=20):
        assert sorted(kept) == list(range(84, 100))
        # Row 96 is the first of the last round, and overwrites place 0 again.
        assert kept.tolist() == [*range(96, 100), *range(84, 96)]
