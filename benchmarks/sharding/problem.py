"""The data of the benchmark, and the network trained on them."""

from __future__ import annotations

from scipy import sparse

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.data.synthetic import AMAZON_670K, extreme_classification
from qcompile.training import TrainConfig

__all__ = ["BATCH", "WIDTH", "config", "data"]

WIDTH, BATCH = 128, 256
QUICK = {"features": 20_000, "labels": 60_000}


def data(quick: bool, rows: int) -> SparseDataset:
    """Draw examples of the shape of Amazon-670K, or of a smaller one."""
    drawn = extreme_classification(rows, **(QUICK if quick else AMAZON_670K))
    return SparseDataset(*(sparse.csr_matrix(matrix) for matrix in drawn))


def config(batch: int) -> TrainConfig:
    """Return the network and its training, with so many examples a step."""
    return TrainConfig(hidden=(WIDTH,), batch=batch, evaluate_every=0)
