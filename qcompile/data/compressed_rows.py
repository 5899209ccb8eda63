"""Arithmetic on compressed sparse rows (CSR) that scipy lacks or does with copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompile.errors import DataError

__all__ = [
    "MAX_COLUMNS",
    "MAX_ENTRIES",
    "Rows",
    "fits_float32",
    "gather",
    "merge_rows",
    "without_zeros",
]

MAX_COLUMNS = 2**31 - 1
"""Most columns of a matrix, so that an index fits 32 bits."""

MAX_ENTRIES = 2**31 - 1
"""Most stored entries of a matrix, so that a row pointer fits 32 bits."""


_STRETCH = 1 << 22
"""Entries looked at together, so that a mapped file needs little memory."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix.

    Args:
        indptr: integer [n + 1], where each row starts; begins with 0.
        indices: integer [entries], the columns.
        values: [entries], or None where only the columns matter.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray | None

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def counts(self) -> np.ndarray:
        """Entries of each row, integer [n]."""
        return np.diff(self.indptr)

    def head(self, count: int) -> Rows:
        """Return the first ``count`` rows."""
        end = int(self.indptr[count])
        values = None if self.values is None else self.values[:end]
        return Rows(self.indptr[: count + 1], self.indices[:end], values)


def fits_float32(values: np.ndarray) -> np.ndarray:
    """Tell which numbers are finite after rounding to float32, bool of the same shape."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32, copy=False))


def gather(indptr: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the entries of some rows.

    Args:
        indptr: integer [n + 1], where each row starts.
        rows: int64 [B], in range, in any order.

    Returns:
        The row pointer of the chosen rows, int64 [B + 1], and the positions of their entries,
        int64, row after row.
    """
    starts = indptr[rows].astype(np.int64)
    counts = indptr[rows + 1] - starts
    chosen = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=chosen[1:])
    entries = np.arange(chosen[-1]) + np.repeat(starts - chosen[:-1], counts)
    return chosen, entries


def without_zeros(rows: Rows) -> Rows:
    """Leave out the entries whose value is zero, and the values."""
    if rows.values is None or rows.values.all():
        return Rows(rows.indptr, rows.indices, None)
    kept = rows.values != 0
    # Entries kept before each row's first.
    indptr = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
    return Rows(indptr, rows.indices[kept], None)


def merge_rows(rows: Rows) -> tuple[Rows, int]:
    """Sort each row by column and merge entries of the same column, summing their values.

    Returns:
        The result, ``rows`` itself where there was nothing to do, and the number of entries that
        were merged into others.

    Raises:
        DataError: a sum does not fit float32.
    """
    if _ascending(rows.indptr, rows.indices):
        return rows, 0
    row = np.repeat(np.arange(len(rows)), rows.counts)
    order = np.lexsort((rows.indices, row))
    row, indices = row[order], rows.indices[order]
    first = np.ones(len(indices), dtype=bool)
    first[1:] = (indices[1:] != indices[:-1]) | (row[1:] != row[:-1])
    values = None if rows.values is None else _sums(rows.values[order], np.flatnonzero(first))
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(np.bincount(row[first], minlength=len(rows)), out=indptr[1:])
    return Rows(indptr, indices[first], values), len(first) - int(first.sum())


def _ascending(indptr: np.ndarray, indices: np.ndarray) -> bool:
    """Tell whether indices ascend strictly within every row."""
    starts = indptr[1:-1]
    for begin in range(0, len(indices) - 1, _STRETCH):
        part = indices[begin : begin + _STRETCH + 1]
        stalls = part[1:] <= part[:-1]
        # From one row to the next an index may fall: where a row starts at the later of the two.
        lower, upper = np.searchsorted(starts, [begin + 1, begin + len(part)])
        stalls[starts[lower:upper] - (begin + 1)] = False
        if stalls.any():
            return False
    return True


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    sums = np.add.reduceat(values.astype(np.float64), starts)
    if not fits_float32(sums).all():
        raise DataError("the sum of a feature that is given more than once does not fit float32.")
    return sums.astype(np.float32)
