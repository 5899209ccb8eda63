"""The Fréchet distance against closed forms and scipy's root of a matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from qcompile.analysis.frechet import Moments, frechet_distance, moments_of
from qcompile.errors import DataError


def moments(vectors) -> Moments:
    found = Moments()
    found.add(torch.as_tensor(vectors))
    return found


def correlated(seed: int, count: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    return mixed + rng.normal(size=width)


def test_moments_are_numpys_whatever_the_batches():
    vectors = correlated(0, 101, 5) + 1e4  # far from zero, where squares would cancel
    found = Moments()
    for part in torch.from_numpy(vectors).split(17):
        found.add(part)
    np.testing.assert_allclose(found.mean.numpy(), vectors.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(vectors.T), rtol=1e-9)
    assert found.count == 101


def test_moments_of_features_come_from_the_images():
    images = torch.randn(7, 2, 3, 3)
    found = moments_of(lambda part: part.flatten(1)[:, :4], images.split(3))
    np.testing.assert_allclose(
        found.mean, images.flatten(1)[:, :4].double().mean(0), rtol=1e-6, atol=1e-7
    )


def test_one_feature_is_the_difference_of_means_and_deviations():
    rng = np.random.default_rng(1)
    one, two = rng.normal(3, 2, (50, 1)), rng.normal(-1, 0.5, (40, 1))
    wanted = (one.mean() - two.mean()) ** 2 + (one.std(ddof=1) - two.std(ddof=1)) ** 2
    assert frechet_distance(moments(one), moments(two)) == pytest.approx(wanted, rel=1e-12)


def test_a_shift_alone_is_its_square():
    vectors = correlated(2, 60, 4)
    shift = np.array([1.0, -2.0, 0.0, 3.0])
    found = frechet_distance(moments(vectors), moments(vectors + shift))
    assert found == pytest.approx(14, rel=1e-10)


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_scaling_about_the_mean_is_that_of_the_deviations(factor):
    """C and f² C commute: the distance is (1 − f)² tr C."""
    vectors = correlated(3, 60, 6)
    scaled = vectors.mean(0) + factor * (vectors - vectors.mean(0))
    wanted = (1 - factor) ** 2 * np.cov(vectors.T).trace()
    assert frechet_distance(moments(vectors), moments(scaled)) == pytest.approx(wanted, rel=1e-7)


@given(seed=st.integers(0, 10_000), width=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_it_is_what_scipys_root_gives(seed, width):
    one, two = correlated(seed, 40, width), correlated(seed + 1, 30, width)
    first, second = np.cov(one.T).reshape(width, width), np.cov(two.T).reshape(width, width)
    root = sqrtm(first @ second).real
    wanted = ((one.mean(0) - two.mean(0)) ** 2).sum() + (first + second - 2 * root).trace()
    found = frechet_distance(moments(one), moments(two))
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-8)
    assert frechet_distance(moments(two), moments(one)) == pytest.approx(found, rel=1e-6, abs=1e-8)


def test_fewer_vectors_than_features_are_no_problem():
    vectors = correlated(4, 5, 20)
    scale = np.cov(vectors.T).trace()
    assert frechet_distance(moments(vectors), moments(vectors)) <= 1e-6 * scale


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="two or more"):
        frechet_distance(moments([[1.0, 2.0]]), moments(correlated(0, 5, 2)))
    with pytest.raises(DataError, match="same network"):
        frechet_distance(moments(correlated(0, 5, 3)), moments(correlated(0, 5, 2)))
    with pytest.raises(DataError, match="NaN"):
        moments([[1.0, float("nan")]])
    with pytest.raises(DataError, match=r"expected \[n, 2\]"):
        moments(correlated(0, 5, 2)).add(torch.zeros(3, 4))
    with pytest.raises(DataError, match=r"expected \[n, d\]"):
        moments(torch.zeros(3))
