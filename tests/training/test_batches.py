"""Batches: each example once an epoch, from any place, for any number of ranks."""

import numpy as np
import pytest
from scipy import sparse

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.errors import DataError
from qcompile.training.batches import Batches, moments


def numbered(rows, unlabelled=()):
    """Rows that carry their number as the value of their only feature."""
    values = np.arange(1, rows + 1, dtype=np.float32)
    features = sparse.csr_matrix((values, np.zeros(rows, int), np.arange(rows + 1)), (rows, 3))
    labels = sparse.lil_matrix((rows, 5))
    for row in set(range(rows)) - set(unlabelled):
        labels[row, row % 5] = 1
    return SparseDataset(features, labels.tocsr())


def seen(batches, epoch, begin=0):
    return [features.data.astype(int) - 1 for features, _ in batches.epoch(epoch, begin)]


def test_each_labelled_row_once_and_the_rest_counted():
    batches = Batches(numbered(23, unlabelled=(0, 7)), 4, seed=1)
    parts = seen(batches, 0)
    assert [len(part) for part in parts] == [4, 4, 4, 4, 4, 1]
    assert sorted(np.concatenate(parts)) == [row for row in range(23) if row not in (0, 7)]
    assert (batches.examples, batches.skipped, batches.per_epoch) == (21, 2, 6)


def test_labels_stay_with_their_features():
    for features, labels in Batches(numbered(20), 6, seed=3).epoch(2):
        assert ((features.data.astype(int) - 1) % 5).tolist() == labels[:, 0].tolist()


def test_an_epoch_goes_on_from_any_place():
    batches = Batches(numbered(50), 7, seed=1)
    whole = seen(batches, 3)
    for begin in (1, 5, 7):
        assert [part.tolist() for part in seen(batches, 3, begin)] == [
            part.tolist() for part in whole[begin:]
        ]
    assert np.concatenate(whole).tolist() != np.concatenate(seen(batches, 4)).tolist()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_one(ranks):
    alone = seen(Batches(numbered(40), 9, seed=5), 1)
    of_ranks = [seen(Batches(numbered(40), 9, 5, rank, ranks), 1) for rank in range(ranks)]
    shared = zip(*of_ranks, strict=True)
    for whole, parts in zip(alone, shared, strict=True):
        assert whole.tolist() == np.concatenate(parts).tolist()
        assert min(map(len, parts)) >= len(whole) // ranks


def test_leaving_an_epoch_early_leaves_no_thread_waiting():
    batches = Batches(numbered(50), 7, seed=1)
    iterator = batches.epoch(0)
    next(iterator)
    iterator.close()
    assert len(seen(batches, 0)) == 8


def test_nothing_to_learn_is_said():
    with pytest.raises(DataError, match="none of 3 rows has a label"):
        Batches(numbered(3, unlabelled=(0, 1, 2)), 2, seed=0)


def test_too_few_examples_for_the_ranks_are_refused():
    with pytest.raises(DataError, match="another batch size than 5"):
        Batches(numbered(21), 5, 0, rank=0, ranks=2)


def test_moments_are_those_of_rows_with_features():
    features = sparse.csr_matrix(np.array([[1, 2, 0], [0, 0, 0], [0, 0, 3]], np.float32))
    dataset = SparseDataset(features, sparse.csr_matrix(np.eye(3)))
    assert moments(dataset) == (7.0, 49.0)
