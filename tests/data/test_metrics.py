"""Precision and hits among the best answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.data.metrics import hit_at_k, precision_at_k
from qcompile.errors import DataError


def test_by_hand():
    ids = np.array([[3, 1, 2], [0, 4, 5]])
    labels = np.array([[1, 3], [5, -1]])
    assert precision_at_k(ids, labels, 1) == 0.5
    assert precision_at_k(ids, labels, 3) == pytest.approx(0.5 * (2 / 3 + 1 / 3))
    assert hit_at_k(ids, labels, 2) == 0.5
    assert hit_at_k(ids, labels, 3) == 1
    assert precision_at_k(np.array([[-1, 0]]), np.array([[0, -1]]), 1) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 10**6))
def test_scores_and_their_ranking_agree(examples, classes, seed):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.arange(examples * classes)).reshape(examples, classes) / 7
    labels = rng.integers(-1, classes, (examples, 3))
    ranked = np.argsort(-scores, axis=1)
    for k in {1, classes}:
        for metric in (precision_at_k, hit_at_k):
            value = metric(scores, labels, k)
            assert value == metric(ranked, labels, k)
            assert value == metric(torch.from_numpy(scores), torch.from_numpy(labels), k)
    distinct = [len({x for x in row if x >= 0}) for row in labels.tolist()]
    assert precision_at_k(scores, labels, classes) == pytest.approx(np.mean(distinct) / classes)


@pytest.mark.parametrize(
    ("answers", "labels", "k"),
    [
        (np.zeros((2, 3)), np.zeros((2, 1), int), 0),
        (np.zeros((2, 3)), np.zeros((2, 1), int), 4),
        (np.zeros((2, 3)), np.zeros((3, 1), int), 1),
        (np.zeros(3), np.zeros((3, 1), int), 1),
        (np.zeros((0, 3)), np.zeros((0, 1), int), 1),
        (np.zeros((2, 3)), np.zeros((2, 1)), 1),
        (np.zeros((2, 3), bool), np.zeros((2, 1), int), 1),
    ],
)
def test_what_does_not_fit_is_refused(answers, labels, k):
    with pytest.raises(DataError):
        precision_at_k(answers, labels, k)
