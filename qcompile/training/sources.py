"""Finds the data that a run names: files, or built-in data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from qcompile.data.reader import read_dataset
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.errors import ConfigurationError
from qcompile.training.config import BUILT_IN

__all__ = ["Sources", "load_sources"]


@dataclass(frozen=True)
class Sources:
    """Where examples come from.

    Args:
        data: a file, or one of :data:`BUILT_IN`.
        labels: file of its labels, where they are apart.
        test: likewise, of what is evaluated.
        test_labels: likewise.
        format: of the files, as :func:`qcompile.data.reader.read_dataset` takes it.
    """

    data: str
    labels: str | None = None
    test: str | None = None
    test_labels: str | None = None
    format: str = "auto"

    def __post_init__(self) -> None:
        if self.data in BUILT_IN and (self.labels or self.test or self.test_labels):
            raise ConfigurationError(
                f"training: the data set {self.data} brings its labels and its test data; leave "
                "out --labels, --test and --test-labels."
            )
        if self.test_labels and not self.test:
            raise ConfigurationError("training: --test-labels needs --test.")

    @property
    def name(self) -> str:
        """Name of the data, without folder and endings."""
        return Path(self.data).name.split(".")[0] or "data"

    def absolute(self) -> Sources:
        """Return the same files, found from any folder."""
        paths = {
            name: value if value is None else str(Path(value).absolute())
            for name, value in vars(self).items()
            if name not in ("format", "data")
        }
        data = self.data if self.data in BUILT_IN else str(Path(self.data).absolute())
        return Sources(data=data, format=self.format, **paths)


def load_sources(sources: Sources) -> tuple[SparseDataset, SparseDataset | None]:
    """Read training and test data, made equally wide.

    Raises:
        DataError: a file cannot be read; its path and line are named.
    """
    if sources.data in BUILT_IN:
        return _LOADERS[sources.data]()
    train = read_dataset(sources.data, labels=sources.labels, format=sources.format)
    if sources.test is None:
        return train, None
    base: dict[str, Any] = {}
    if train.report.get("format") == "libsvm":
        base["index_base"] = train.report["index_base"]
    test = read_dataset(sources.test, labels=sources.test_labels, format=sources.format, **base)
    return _widen(train, test), _widen(test, train)


def _widen(data: SparseDataset, other: SparseDataset) -> SparseDataset:
    """Return ``data`` with as many features and labels as ``other`` if it has fewer.

    Test data may name what training data do not, where the files state no sizes. Nothing can be
    learned of those, but they are no reason to stop.
    """
    parts = [
        _columns(matrix, max(matrix.shape[1], beside.shape[1]))
        for matrix, beside in ((data.features, other.features), (data.labels, other.labels))
    ]
    return SparseDataset(*parts, report=data.report)


def _columns(matrix: sparse.csr_matrix, columns: int) -> sparse.csr_matrix:
    shape = (matrix.shape[0], columns)
    wider = sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=shape)
    wider.has_canonical_format = True
    return wider


def _codespell() -> tuple[SparseDataset, SparseDataset]:
    """Return misspelled words as counts of character n-grams, with their corrections."""
    from qcompile.data.codespell import FEATURES, load

    data = load()

    def dataset(ids: np.ndarray, labels: np.ndarray) -> SparseDataset:
        return SparseDataset(
            _rows(ids, ids != 0, FEATURES), _rows(labels, labels >= 0, len(data.labels))
        )

    return (
        dataset(data.train_ids, data.train_labels),
        dataset(data.test_ids, data.test_labels),
    )


def _rows(padded: np.ndarray, filled: np.ndarray, columns: int) -> sparse.csr_matrix:
    """Return the ids of padded rows as a CSR matrix of ones; repeated ids add up."""
    starts = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    ones = np.ones(starts[-1], np.float32)
    matrix = sparse.csr_matrix((ones, padded[filled], starts), shape=(len(padded), columns))
    matrix.sum_duplicates()
    return matrix


def _geonames() -> tuple[SparseDataset, SparseDataset]:
    """Return names of cities in any script as character n-grams, with the cities."""
    from qcompile.data.geonames import load

    return load()


_LOADERS = {"codespell": _codespell, "geonames": _geonames}
