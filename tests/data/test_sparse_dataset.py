"""Datasets in memory: batches in any order, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qcompile.data import SparseDataset
from qcompile.errors import DataError


def random_dataset(rows, seed, columns=11, classes=7):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < 0.4)
    labels = rng.random((rows, classes)) < 0.3
    return features.astype(np.float32), labels


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(0, 10**6))
def test_a_batch_holds_the_rows_asked_for(data, count, seed):
    features, labels = random_dataset(count, seed)
    dataset = SparseDataset(sparse.csr_matrix(features), sparse.csr_matrix(labels))
    rows = data.draw(st.lists(st.integers(0, count - 1), max_size=12))
    batch = dataset.batch(rows)
    assert batch.features.shape == (len(rows), 11)
    assert batch.features.dtype == np.float32
    assert np.array_equal(batch.features.toarray(), features[rows].reshape(-1, 11))
    assert batch.labels.dtype == np.int64
    assert batch.labels.shape == (len(rows), max([1, *labels[rows].sum(axis=1)]))
    for row, found in zip(rows, batch.labels, strict=True):
        own = np.flatnonzero(labels[row])
        assert found.tolist() == own.tolist() + [-1] * (len(found) - len(own))
    part = dataset.subset(rows)
    assert np.array_equal(part.features.toarray(), features[rows].reshape(-1, 11))
    assert np.array_equal(part.labels.toarray(), labels[rows].reshape(-1, 7))


def test_sizes_and_rows_with_labels():
    features, labels = random_dataset(30, 1)
    labels[[3, 7]] = False
    dataset = SparseDataset(sparse.coo_matrix(features), sparse.csc_matrix(labels))
    assert (len(dataset), dataset.num_features, dataset.num_labels) == (30, 11, 7)
    assert dataset.labelled_rows.tolist() == np.flatnonzero(labels.any(axis=1)).tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), max_size=6), min_size=1))
def test_rows_are_sorted_and_repeated_features_summed(rows):
    indptr = np.cumsum([0] + [len(row) for row in rows])
    indices = [column for row in rows for column, _ in row]
    values = np.array([value for row in rows for _, value in row], dtype=np.float32)
    features = sparse.csr_matrix((values, indices, indptr), (len(rows), 5))
    expected = np.zeros((len(rows), 5))
    for row, entries in enumerate(rows):
        for column, value in entries:
            expected[row, column] += value
    before = features.indices.copy()
    dataset = SparseDataset(features, features)
    assert np.array_equal(dataset.features.toarray(), expected)
    assert np.array_equal(features.indices, before)
    named = [sorted({c for c, v in row if v}) for row in rows]
    assert [dataset.labels[i].indices.tolist() for i in range(len(rows))] == named
    for matrix in (dataset.features, dataset.labels):
        for row in range(len(rows)):
            part = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
            assert (np.diff(part) > 0).all()


def test_arrays_are_kept_without_a_copy(tmp_path):
    features, labels = (sparse.csr_matrix(m) for m in random_dataset(9, 2))
    np.save(tmp_path / "values.npy", features.data)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    features = sparse.csr_matrix((mapped, features.indices, features.indptr), features.shape)
    dataset = SparseDataset(features, labels)
    assert np.shares_memory(dataset.features.data, mapped)
    assert np.shares_memory(dataset.features.indices, features.indices)


@pytest.mark.parametrize("rows", [[0, 9], [-1], [0.5], [[0]], 3, ["a"], [True]])
def test_rows_that_do_not_exist_are_refused(rows):
    features, labels = random_dataset(9, 0)
    dataset = SparseDataset(sparse.csr_matrix(features), sparse.csr_matrix(labels))
    with pytest.raises(DataError, match="rows"):
        dataset.batch(rows)


def broken(field, value):
    matrix = sparse.csr_matrix(np.eye(3, dtype=np.float32))
    setattr(matrix, field, np.asarray(value))
    return matrix


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.eye(3), "scipy"),
        (sparse.csr_matrix(np.eye(4)), "same number"),
        (broken("indices", [0, 1, 3]), "row 2 of features has index 3"),
        (broken("indices", [0, -1, 2]), "row 1 of features has index -1"),
        (broken("indptr", [0, 2, 1, 3]), "row pointers"),
        (broken("indptr", [0, 1, 2, 9]), "row pointers"),
        (broken("indptr", [1, 1, 2, 3]), "row pointers"),
        (broken("data", np.array([1, np.nan, 1], np.float32)), "finite"),
        (broken("data", np.array([1, 1e39, 1])), "finite"),
        (broken("data", np.array([1, 1j, 1])), "complex"),
        (sparse.csr_matrix((3, 2**31)), "columns"),
    ],
)
def test_broken_matrices_are_refused(features, message):
    with pytest.raises(DataError, match=message):
        SparseDataset(features, sparse.csr_matrix(np.eye(3)))


def test_a_sum_beyond_float32_is_refused():
    values = np.array([3e38, 3e38], np.float32)
    features = sparse.csr_matrix((values, [1, 1], [0, 2]), (1, 2))
    with pytest.raises(DataError, match="more than once"):
        SparseDataset(features, sparse.csr_matrix((1, 2)))
