"""Examples with sparse features and many labels, in memory or mapped from disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from qcompile.data.compressed_rows import (
    MAX_COLUMNS,
    MAX_ENTRIES,
    Rows,
    fits_float32,
    gather,
    merge_rows,
    without_zeros,
)
from qcompile.errors import DataError

__all__ = ["SparseBatch", "SparseDataset"]

_STRETCH = 1 << 22
"""Entries checked at a time, so that checking a mapped file needs little memory."""


@dataclass(frozen=True)
class SparseBatch:
    """Some rows of a dataset, in the order that was asked for.

    Args:
        features: scipy CSR float32 [B, num_features]; columns ascend within a row.
        labels: int64 [B, T ≥ 1], each row's labels ascending, padded with -1 on the right.
    """

    features: sparse.csr_matrix
    labels: np.ndarray


class SparseDataset:
    """Features and labels of n examples as two CSR matrices; immutable.

    Arrays that are already as needed are kept, not copied, so they may be memory-mapped.

    Args:
        features: scipy sparse [n, num_features]; made float32 CSR. A feature that a row names more
            than once counts with the sum of its values; unsorted rows are sorted.
        labels: scipy sparse [n, num_labels]; every non-zero entry is a label, whatever its value.
        report: what reading the source showed, see :func:`qcompile.data.read_dataset`.

    Raises:
        DataError: not sparse matrices of equally many rows, too large for 32-bit indices, indices
            out of range, or values that are NaN, infinite or too large for float32.
    """

    def __init__(self, features: Any, labels: Any, *, report: dict[str, Any] | None = None) -> None:
        if not (sparse.issparse(features) and sparse.issparse(labels)):
            raise DataError(
                f"SparseDataset: expected two scipy.sparse matrices, got {type(features).__name__} "
                f"and {type(labels).__name__}. Convert with scipy.sparse.csr_matrix(array)."
            )
        if features.ndim != 2 or labels.ndim != 2 or features.shape[0] != labels.shape[0]:
            raise DataError(
                f"SparseDataset: features {features.shape} and labels {labels.shape} need the same "
                f"number of rows."
            )
        self.features = _features(features)
        self.labels = _labels(labels)
        self.report: dict[str, Any] = dict(report or {})

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def num_features(self) -> int:
        """Number of features, the highest index plus one or more."""
        return int(self.features.shape[1])

    @property
    def num_labels(self) -> int:
        """Number of labels, the highest index plus one or more."""
        return int(self.labels.shape[1])

    @cached_property
    def labelled_rows(self) -> np.ndarray:
        """Rows with at least one label, int64 ascending; only these can be trained on."""
        return np.flatnonzero(np.diff(self.labels.indptr))

    def batch(self, rows: Any) -> SparseBatch:
        """Return some rows.

        Args:
            rows: integers in [0, n), in any order; a row may occur more than once.

        Raises:
            DataError: ``rows`` is not a list of integers in range.
        """
        rows = self._checked(rows)
        indptr, entries = gather(self.features.indptr, rows)
        chosen = Rows(indptr, np.take(self.features.indices, entries), None)
        features = _csr(np.take(self.features.data, entries), chosen, self.num_features)
        return SparseBatch(features, self._padded_labels(rows))

    def subset(self, rows: Any) -> SparseDataset:
        """Return a dataset of some rows (a copy in memory); takes and raises as :meth:`batch`."""
        rows = self._checked(rows)
        parts = []
        for matrix in (self.features, self.labels):
            indptr, entries = gather(matrix.indptr, rows)
            values, indices = np.take(matrix.data, entries), np.take(matrix.indices, entries)
            parts.append(sparse.csr_matrix((values, indices, indptr), (len(rows), matrix.shape[1])))
        return SparseDataset(*parts, report=self.report)

    def _padded_labels(self, rows: np.ndarray) -> np.ndarray:
        indptr, entries = gather(self.labels.indptr, rows)
        counts = np.diff(indptr)
        width = max(int(counts.max(initial=0)), 1)
        padded = np.full((len(rows), width), -1, dtype=np.int64)
        padded[np.arange(width) < counts[:, None]] = np.take(self.labels.indices, entries)
        return padded

    def _checked(self, rows: Any) -> np.ndarray:
        found = np.asarray(rows)
        if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
            raise DataError(
                f"SparseDataset: rows must be a list of integers, got {found.dtype} "
                f"{list(found.shape)}."
            )
        if found.size and not (int(found.min()) >= 0 and int(found.max()) < len(self)):
            raise DataError(
                f"SparseDataset: rows {int(found.min())} to {int(found.max())} asked for, there "
                f"are 0 to {len(self) - 1}."
            )
        return found.astype(np.int64, copy=False)


def _features(matrix: Any) -> sparse.csr_matrix:
    matrix = matrix.tocsr()
    _check_structure(matrix, "features")
    if matrix.data.dtype.kind not in "iufb":
        raise DataError(f"SparseDataset: features of {matrix.data.dtype}, expected numbers.")
    _check_values(matrix.data)
    values = matrix.data.astype(np.float32, copy=False)
    rows, _ = merge_rows(Rows(matrix.indptr, matrix.indices, values))
    return _csr(rows.values, rows, matrix.shape[1])


def _labels(matrix: Any) -> sparse.csr_matrix:
    matrix = matrix.tocsr()
    _check_structure(matrix, "labels")
    rows, _ = merge_rows(without_zeros(Rows(matrix.indptr, matrix.indices, matrix.data)))
    return _csr(np.ones(len(rows.indices), dtype=bool), rows, matrix.shape[1])


def _csr(values: np.ndarray | None, rows: Rows, columns: int) -> sparse.csr_matrix:
    """Wrap arrays whose rows are sorted and without duplicates; copies none of the right dtype."""
    indices = rows.indices.astype(np.int32, copy=False)
    indptr = rows.indptr.astype(np.int32, copy=False)
    matrix = sparse.csr_matrix((values, indices, indptr), (len(rows), columns))
    matrix.has_canonical_format = True
    return matrix


def _check_structure(matrix: Any, name: str) -> None:
    indptr, indices = matrix.indptr, matrix.indices
    rows, columns = matrix.shape
    if columns > MAX_COLUMNS or len(indices) > MAX_ENTRIES:
        raise DataError(
            f"SparseDataset: {name} [{rows}, {columns}] with {len(indices)} entries; at most "
            f"{MAX_COLUMNS} columns and {MAX_ENTRIES} entries fit. Split the data."
        )
    if (
        len(indptr) != rows + 1
        or indptr[0] != 0
        or not len(matrix.data) == len(indices) == indptr[-1]
        or (np.diff(indptr) < 0).any()
    ):
        raise DataError(f"SparseDataset: the row pointers of {name} are broken.")
    for start in range(0, len(indices), _STRETCH):
        part = indices[start : start + _STRETCH]
        if part.min() < 0 or part.max() >= columns:
            wrong = start + int(np.flatnonzero((part < 0) | (part >= columns))[0])
            row = int(np.searchsorted(indptr, wrong, side="right")) - 1
            raise DataError(
                f"SparseDataset: row {row} of {name} has index {int(indices[wrong])}, expected 0 "
                f"to {columns - 1}."
            )


def _check_values(values: np.ndarray) -> None:
    for start in range(0, len(values), _STRETCH):
        if not fits_float32(values[start : start + _STRETCH]).all():
            raise DataError("SparseDataset: features must be finite and fit float32.")
