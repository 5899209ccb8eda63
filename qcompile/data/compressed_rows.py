"""Arithmetic on compressed sparse rows (CSR) that scipy lacks or does with copies."""

from __future__ import annotations

import numpy as np

from qcompile.errors import DataError

__all__ = ["MAX_COLUMNS", "MAX_ENTRIES", "gather", "merge_rows"]

MAX_COLUMNS = 2**31 - 1
"""Most columns of a matrix, so that an index fits 32 bits."""

MAX_ENTRIES = 2**31 - 1
"""Most stored entries of a matrix, so that a row pointer fits 32 bits."""


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


def merge_rows(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Sort each row by index and merge entries of the same index.

    Args:
        indptr: integer [n + 1], where each row starts.
        indices: integer [entries].
        values: float [entries], summed where merged; None if there are only indices.

    Returns:
        ``indptr``, ``indices`` and ``values`` of the result, the same arrays where there was
        nothing to do, and the number of entries that were merged into others.

    Raises:
        DataError: a sum does not fit float32.
    """
    if _ascending(indptr, indices):
        return indptr, indices, values, 0
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((indices, rows))
    rows, indices = rows[order], indices[order]
    first = np.ones(len(indices), dtype=bool)
    first[1:] = (indices[1:] != indices[:-1]) | (rows[1:] != rows[:-1])
    if values is not None:
        values = _sums(values[order], np.flatnonzero(first))
    merged = np.zeros(len(indptr), dtype=np.int64)
    np.cumsum(np.bincount(rows[first], minlength=len(indptr) - 1), out=merged[1:])
    return merged, indices[first], values, len(first) - int(first.sum())


def _ascending(indptr: np.ndarray, indices: np.ndarray) -> bool:
    """Tell whether indices ascend strictly within every row."""
    if len(indices) < 2:
        return True
    stalls = indices[1:] <= indices[:-1]
    # Between rows indices may fall: entry i and i + 1 belong to two rows if one starts at i + 1.
    starts = indptr[1:-1]
    starts = starts[(starts > 0) & (starts < len(indices))]
    stalls[starts - 1] = False
    return not stalls.any()


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    if not len(starts):
        return values
    sums = np.add.reduceat(values.astype(np.float64), starts)
    if not (np.abs(sums) <= np.finfo(np.float32).max).all():
        raise DataError("the sum of a feature that is given more than once does not fit float32.")
    return sums.astype(np.float32)
