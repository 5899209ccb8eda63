"""nDCG, PSP and PSnDCG against their definitions, written out, and against napkinXC's figures."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qcompile.data.metrics import (
    Evaluation,
    ndcg_at_k,
    precision_at_k,
    propensity_weights,
    psndcg_at_k,
    psp_at_k,
)
from qcompile.errors import DataError


def matrix(rows, columns):
    indptr = np.cumsum([0] + [len(row) for row in rows])
    indices = np.concatenate([np.array(sorted(row), dtype=int) for row in rows])
    return sparse.csr_matrix((np.ones(len(indices)), indices, indptr), (len(rows), columns))


def by_definition(answers, right, weights, k):
    """Loops over examples and ranks, as the measures are defined."""

    def dcg(gains):
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))

    sums = dict.fromkeys(("P", "nDCG", "PSP", "PSP best", "PSnDCG", "PSnDCG best"), 0.0)
    for ids, own in zip(answers, right, strict=True):
        hits = [int(i in own) for i in ids[:k]]
        gains = [weights[i] if i in own else 0.0 for i in ids[:k]]
        best = sorted((weights[i] for i in own), reverse=True)[:k]
        ideal = dcg([1] * min(k, len(own))) or math.inf
        sums["P"] += sum(hits) / k
        sums["nDCG"] += dcg(hits) / ideal
        sums["PSP"] += sum(gains) / k
        sums["PSP best"] += sum(best) / k
        sums["PSnDCG"] += dcg(gains) / ideal
        sums["PSnDCG best"] += dcg(best) / ideal
    return (
        sums["P"] / len(right),
        sums["nDCG"] / len(right),
        sums["PSP"] / sums["PSP best"],
        sums["PSnDCG"] / sums["PSnDCG best"],
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 15), st.integers(2, 20), st.integers(0, 10**6))
def test_against_the_definitions(examples, classes, seed):
    rng = np.random.default_rng(seed)
    right = [set(np.flatnonzero(rng.random(classes) < 0.3).tolist()) for _ in range(examples)]
    right[0] |= {1}
    scores = rng.permuted(np.arange(examples * classes)).reshape(examples, classes) / 7
    answers = np.argsort(-scores, axis=1)
    labels = matrix(right, classes)
    padded = np.full((examples, classes + 1), -1)
    for row, own in enumerate(right):
        padded[row, : len(own)] = rng.permutation(list(own))
    weights = 1 + rng.random(classes)
    k = int(rng.integers(1, classes + 1))
    expected = by_definition(answers.tolist(), right, weights, k)
    for form in (scores, torch.from_numpy(scores), answers, sparse.csr_matrix(scores + 1)):
        for targets in (labels, padded, torch.from_numpy(padded)):
            found = (
                precision_at_k(form, targets, k),
                ndcg_at_k(form, targets, k),
                psp_at_k(form, targets, weights, k),
                psndcg_at_k(form, targets, weights, k),
            )
            assert found == pytest.approx(expected, rel=1e-12)


def test_batches_add_up():
    rng = np.random.default_rng(3)
    labels = sparse.csr_matrix(rng.random((50, 30)) < 0.1)
    scores = rng.random((50, 30))
    weights = propensity_weights(labels)
    whole, parts = Evaluation(weights=weights), Evaluation(weights=weights)
    whole.add(scores, labels)
    for start in range(0, 50, 7):
        parts.add(scores[start : start + 7], labels[start : start + 7])
    assert parts.results() == pytest.approx(whole.results(), rel=1e-12)
    assert parts.examples == 50
    assert set(whole.results()) == {
        f"{name}@{k}" for name in ("P", "hit", "nDCG", "PSP", "PSnDCG") for k in (1, 3, 5)
    }


def test_propensities_by_the_formula():
    labels = matrix([{0, 1}, {0}, {0}, {2}, {0}], 4)
    weights = propensity_weights(labels, a=0.6, b=2.6)
    scale = (math.log(5) - 1) * 3.6**0.6
    assert weights == pytest.approx([1 + scale / (m + 2.6) ** 0.6 for m in (4, 1, 1, 0)])


def test_figures_of_another_implementation():
    # Computed once by napkinXC 0.7.2 (metrics.py) on the same labels and answers, k = 1 … 5.
    right = [{(i * i + 5 * j) % 17 for j in range(1 + i % 4)} for i in range(24)]
    answers = np.array([[(3 * i + j * j + 2) % 17 for j in range(5)] for i in range(24)])
    labels = matrix(right, 17)
    weights = propensity_weights(labels)
    evaluation = Evaluation((1, 2, 3, 4, 5), weights)
    evaluation.add(answers, labels)
    results = evaluation.results()
    assert weights[:4] == pytest.approx([2.411679586, 2.287755068, 2.111105263, 2.810081749])
    for name, expected in {
        "P": [0.041666667, 0.1875, 0.194444444, 0.197916667, 0.191666667],
        "nDCG": [0.041666667, 0.154498735, 0.196808079, 0.230797662, 0.258511113],
        "PSP": [0.046728777, 0.210931659, 0.257003914, 0.322348612, 0.38402086],
        "PSnDCG": [0.046728777, 0.153632931, 0.194815209, 0.232138002, 0.257373863],
    }.items():
        found = [results[f"{name}@{k}"] for k in range(1, 6)]
        assert found == pytest.approx(expected, abs=1e-9)


def test_sparse_scores_with_few_entries():
    scores = sparse.csr_matrix(np.array([[0, 0.5, 0, 0.9], [0, 0, 0, 0], [0.1, 0, 0, 0]]))
    labels = matrix([{1}, {2}, {0, 3}], 4)
    assert precision_at_k(scores, labels, 1) == pytest.approx(1 / 3)
    assert precision_at_k(scores, labels, 3) == pytest.approx((1 + 0 + 1) / 9)
    assert ndcg_at_k(scores, labels, 2) == pytest.approx(
        (1 / math.log2(3) + 1 / (1 + 1 / math.log2(3))) / 3
    )


def test_scores_are_ranked_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr("qcompile.data.metrics._STRETCH", 100)
    scores = np.random.default_rng(2).random((23, 40)).astype(np.float32)
    right = np.argsort(-scores, axis=1)[:, 3:4]
    assert [precision_at_k(scores, right, k) * k for k in (3, 4)] == [0, pytest.approx(1)]
    coarse = torch.tensor([[0.0, 2.0, 1.0]]).bfloat16()
    assert precision_at_k(coarse, np.array([[1]]), 1) == 1


def test_a_million_labels_need_no_dense_array():
    rng = np.random.default_rng(0)
    labels = sparse.csr_matrix(
        (np.ones(10_000), rng.integers(0, 10**6, 10_000), np.arange(0, 10_001, 5)), (2000, 10**6)
    )
    ids = labels.indices.reshape(2000, 5).astype(np.int64)
    kept = np.array([len(set(row)) == 5 for row in ids.tolist()])
    weights = propensity_weights(labels)
    assert psp_at_k(ids[kept][:, ::-1], labels[kept], weights, 5) == pytest.approx(1)


ONE = np.array([[0]])


@pytest.mark.parametrize(
    ("answers", "labels", "weights", "message"),
    [
        (np.array([[2, 2]]), ONE, None, "twice"),
        (np.array([[np.nan, 1.0]]), ONE, None, "NaN"),
        (sparse.csr_matrix([[np.nan, 1.0]]), ONE, None, "NaN"),
        (np.array([[1.0, 2.0]]), matrix([{0}, {1}], 2), None, "1 examples, labels for 2"),
        (np.array([[1, 0]]), np.array([[3]]), np.ones(3), "cover label 3"),
        (np.array([[1, 0]]), np.array([[-1]]), np.ones(3), "no example has a label"),
    ],
)
def test_what_does_not_fit_is_refused(answers, labels, weights, message):
    evaluation = Evaluation((1, 2), weights)
    with pytest.raises(DataError, match=message):
        evaluation.add(answers, labels)
        evaluation.results()


def test_counts_that_are_none_are_refused():
    with pytest.raises(DataError, match="no example"):
        Evaluation().results()
    with pytest.raises(DataError, match="positive"):
        Evaluation(())
    with pytest.raises(DataError, match="integer"):
        precision_at_k(ONE, ONE, 1.0)
    with pytest.raises(DataError, match="sparse"):
        propensity_weights(np.eye(3))
