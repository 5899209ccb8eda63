import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from retrieval.heads import best, describe, synthetic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def head(folder):
    return synthetic("w20", folder, queries=512)


def test_a_head_is_seeded(head, tmp_path):
    again = synthetic("w20", tmp_path, queries=512)
    assert np.allclose(again.weight, head.weight, rtol=1e-3, atol=1e-4)
    assert np.array_equal(again.labels, head.labels)


def test_a_kept_head_is_read_back(head, folder):
    again = synthetic("w20", folder, queries=512)
    assert np.array_equal(again.weight, head.weight)
    assert [place.name for place in folder.iterdir()] == ["w20-2-512"]


def test_a_head_is_like_a_trained_one(head):
    figures = describe("w20", head, 512)
    assert head.weight.shape == (20_011, 128)
    assert head.weight.dtype == head.bias.dtype == head.queries.dtype == np.float32
    assert 0.45 < figures["share of zeros in the queries"] < 0.55
    assert 0.2 < figures["P@1"] < 0.9
    assert figures["right topic"] > figures["P@1"]
    assert 2 < figures["standard deviation of the bias"] < 10
    assert not np.array_equal(head.calibration, head.queries)


def test_best_are_the_largest_in_order(head):
    some = head.queries[:70]
    scores = some.astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias
    ids = best(head, 5, some)
    kept = np.take_along_axis(scores, ids, axis=1)
    assert np.allclose(kept, -np.sort(-scores, axis=1)[:, :5], atol=1e-3)
