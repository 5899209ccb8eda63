"""CSR matrices on disk as plain .npy arrays, written in order and mapped into memory."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from scipy import sparse

from qcompile.data.compressed_rows import MAX_ENTRIES, Rows
from qcompile.errors import DataError

__all__ = ["MatrixWriter", "map_matrix", "shift_columns"]

_STRETCH = 1 << 22


class MatrixWriter:
    """Writes ``NAME.indptr.npy``, ``NAME.indices.npy`` (int32) and ``NAME.values.npy`` (float32).

    Args:
        folder: an existing folder.
        name: of the matrix.
        values: whether there are values; otherwise only columns are kept.

    Raises:
        OSError: by every method: the disk is full, for example.
    """

    def __init__(self, folder: Path, name: str, *, values: bool) -> None:
        self._name = name
        self.rows = 0
        self.entries = 0
        self.empty_rows = 0
        self.lowest = self.highest = -1
        """Columns in use, -1 without any."""
        self._indptr = _ArrayFile(folder / f"{name}.indptr.npy", np.dtype(np.int32))
        self._indices = _ArrayFile(folder / f"{name}.indices.npy", np.dtype(np.int32))
        self._values = (
            _ArrayFile(folder / f"{name}.values.npy", np.dtype(np.float32)) if values else None
        )
        self._indptr.append(np.zeros(1))

    @property
    def has_values(self) -> bool:
        """Whether values are written."""
        return self._values is not None

    def __enter__(self) -> MatrixWriter:
        return self

    def __exit__(self, *unused: object) -> None:
        for file in (self._indptr, self._indices, self._values):
            if file is not None:
                file.close()

    def append(self, rows: Rows) -> None:
        """Write rows below the others.

        Raises:
            DataError: more entries than a 32-bit row pointer can count.
        """
        if self.entries + len(rows.indices) > MAX_ENTRIES:
            raise DataError(f"{self._name}: more than {MAX_ENTRIES} entries. Split the file.")
        self._indptr.append(rows.indptr[1:] + self.entries)
        self._indices.append(rows.indices)
        if self._values is not None and rows.values is not None:
            self._values.append(rows.values)
        self.rows += len(rows)
        self.entries += len(rows.indices)
        self.empty_rows += int((rows.counts == 0).sum())
        if len(rows.indices):
            lowest = int(rows.indices.min())
            self.lowest = lowest if self.lowest < 0 else min(self.lowest, lowest)
            self.highest = max(self.highest, int(rows.indices.max()))

    def finish(self) -> None:
        """Complete the files."""
        for file in (self._indptr, self._indices, self._values):
            if file is not None:
                file.finish()


def map_matrix(folder: Path, name: str, columns: int, *, values: bool) -> sparse.csr_matrix:
    """Map a matrix that was written; without values every entry is True.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged.
    """
    indptr, indices = _map(folder / f"{name}.indptr.npy"), _map(folder / f"{name}.indices.npy")
    data = _map(folder / f"{name}.values.npy") if values else np.ones(len(indices), dtype=bool)
    return sparse.csr_matrix((data, indices, indptr), (len(indptr) - 1, columns))


def shift_columns(folder: Path, name: str, by: int) -> None:
    """Add a number to every column of a finished matrix, in place."""
    indices = np.load(folder / f"{name}.indices.npy", mmap_mode="r+", allow_pickle=False)
    for start in range(0, len(indices), _STRETCH):
        indices[start : start + _STRETCH] += by
    indices.flush()


def _map(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 1 or array.dtype not in (np.int32, np.float32):
        raise ValueError(f"{path}: {array.dtype} {list(array.shape)}")
    return array


class _ArrayFile:
    """A one-dimensional .npy file whose length is known when it is complete."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._dtype, self._count = dtype, 0
        self._file: IO[bytes] = path.open("wb")
        self._header()
        self._start = self._file.tell()

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._count += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._start:  # NumPy leaves room for the length to grow
            raise AssertionError("the header of a .npy file changed its size")
        self._file.close()

    def close(self) -> None:
        self._file.close()

    def _header(self) -> None:
        npy.write_array_header_1_0(
            self._file,
            {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)},
        )
