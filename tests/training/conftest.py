"""A small problem that can be learned."""

import pytest

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.data.synthetic import extreme_classification

SHAPE = {"features": 300, "labels": 111, "nonzeros": 20, "labels_per_row": 2, "signal": 0.9}
SHAPE |= {"popularity": 0.3}  # else the most frequent label alone is hard to beat


@pytest.fixture(scope="session")
def train_data() -> SparseDataset:
    return SparseDataset(*extreme_classification(2000, **SHAPE))


@pytest.fixture(scope="session")
def test_data() -> SparseDataset:
    return SparseDataset(*extreme_classification(150, **SHAPE, stream=1))
