"""The data sets of the training benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.data.synthetic import AMAZON_670K, extreme_classification

__all__ = ["PROBLEMS", "Problem", "load"]


@dataclass(frozen=True)
class Problem:
    """Sizes of a problem and how everybody trains on it.

    Args:
        train: rows to train on.
        test: rows to test on.
        batch: examples a step, for every network alike.
        lr: Adam's learning rates of the first and of the output layer, for every network alike,
            constant.
        shape: features and labels of a synthetic problem; ``None`` for geonames.
    """

    train: int
    test: int
    batch: int
    lr: tuple[float, float]
    shape: dict[str, int] | None = None


PROBLEMS = {
    "amazon-670k-like": Problem(20_000, 3_000, 128, (1e-3, 1e-3), AMAZON_670K),
    "geonames": Problem(1_037_879, 20_000, 256, (1e-2, 3e-3)),
    "small": Problem(8_000, 1_000, 128, (1e-3, 1e-3), {"features": 20_000, "labels": 50_000}),
}


def load(name: str) -> tuple[Problem, SparseDataset, SparseDataset]:
    """Return a problem with its rows for training and testing."""
    problem = PROBLEMS[name]
    if problem.shape is None:
        from qcompile.data import geonames

        return problem, *geonames.load()
    train, test = (
        SparseDataset(*extreme_classification(rows, **problem.shape, stream=stream))
        for stream, rows in enumerate((problem.train, problem.test))
    )
    return problem, train, test
