"""CSR matrices in the files of ``scipy.sparse.save_npz``, read in blocks of rows.

``scipy.sparse.load_npz`` holds a matrix whole; here memory stays bounded, also for a small file
that unpacks to a huge one, and nothing in the file is trusted.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from qcompile.data.compressed_rows import MAX_COLUMNS, Rows, fits_float32, merge_rows
from qcompile.errors import DataError

__all__ = ["NpzMatrix", "is_npz"]

_BLOCK_ROWS = 1 << 16
_BLOCK_ENTRIES = 1 << 21
_LONGEST_ROW = 1 << 24
_SMALL = 4096  # bytes of the arrays that hold the shape and the format

_MAGIC = b"PK\x03\x04"


def is_npz(path: Path) -> bool:
    """Tell from its first bytes whether a file is an .npz file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error


class NpzMatrix:
    """One CSR matrix of numbers; every error names the file.

    Args:
        path: a zip file of .npy arrays ``format``, ``shape``, ``indptr``, ``indices`` and ``data``.

    Raises:
        DataError: by every method: the file is no such file, is damaged, or its arrays contradict
            each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises many kinds on damaged files
            raise DataError(f"{path}: not a readable .npz file: {error}.") from error
        self.shape = self._shape()

    def __enter__(self) -> NpzMatrix:
        return self

    def __exit__(self, *unused: object) -> None:
        self._archive.close()

    def rows(self) -> Iterator[tuple[Rows, int]]:
        """Yield all rows, float32, and how many entries were merged into others."""
        arrays = {name: _Stream(self, name) for name in ("indptr", "indices", "data")}
        indptr, indices, data = arrays.values()
        count = self.shape[0]
        if indptr.left != count + 1 or indices.left != data.left:
            raise self._fail(
                f"{count} rows need {count + 1} row pointers, found {indptr.left}; {indices.left} "
                f"indices for {data.left} values."
            )
        entries = indices.left
        last = indptr.take_integers(1)
        if last[0] != 0:
            raise self._fail("the row pointers do not begin with 0.")
        for first in range(0, count, _BLOCK_ROWS):
            ends = indptr.take_integers(min(_BLOCK_ROWS, count - first))
            pointers = np.concatenate([last, ends])
            if (np.diff(pointers) < 0).any() or pointers[-1] > entries:
                raise self._fail(f"the row pointers of rows {first} and after are broken.")
            yield from self._split(first, pointers, indices, data)
            last = ends[-1:]
        if last[0] != entries:
            raise self._fail(f"the row pointers end at {last[0]}, there are {entries} entries.")

    def _split(
        self, first: int, pointers: np.ndarray, indices: _Stream, data: _Stream
    ) -> Iterator[tuple[Rows, int]]:
        """Yield the rows of one block of pointers, so many at a time as memory allows."""
        row = 0
        while row < len(pointers) - 1:
            end = int(np.searchsorted(pointers, pointers[row] + _BLOCK_ENTRIES, side="right")) - 1
            end = max(end, row + 1)
            part = pointers[row : end + 1] - pointers[row]
            if part[-1] > _LONGEST_ROW:
                raise self._fail(f"row {first + row} has {part[-1]} entries, at most 2^24 fit.")
            columns = indices.take_integers(int(part[-1]))
            values = data.take(int(part[-1]))
            self._check(first + row, part, columns, values)
            rows = Rows(part, columns.astype(np.int32), values.astype(np.float32))
            try:
                merged = merge_rows(rows)
            except DataError as error:
                raise self._fail(f"rows {first + row} to {first + end - 1}: {error}") from error
            yield merged
            row = end

    def _check(self, row: int, part: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        for wrong, what in (
            ((columns < 0) | (columns >= self.shape[1]), f"column {{}} of {self.shape[1]}"),
            (~fits_float32(values), "the value {}, which is not finite or does not fit float32"),
        ):
            if wrong.any():
                at = int(np.argmax(wrong))
                row += int(np.searchsorted(part, at, side="right")) - 1
                found = columns[at] if what.startswith("column") else values[at]
                raise self._fail(f"row {row} (from 0) has {what.format(found)}.")

    def _shape(self) -> tuple[int, int]:
        layout, shape = self._small("format"), self._small("shape")
        name = layout.item() if layout.size == 1 else None
        name = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        if name != "csr":
            raise self._fail(
                f"a matrix of the format {name!r}; save it as CSR: "
                f"scipy.sparse.save_npz(path, matrix.tocsr())."
            )
        if shape.shape != (2,) or shape.dtype.kind not in "iu":
            raise self._fail(f"a shape of {shape.dtype} {list(shape.shape)}, expected two numbers.")
        rows, columns = (int(size) for size in shape)
        if not (0 <= rows <= MAX_COLUMNS and 0 <= columns <= MAX_COLUMNS):
            raise self._fail(f"the shape [{rows}, {columns}], sizes are 0 to {MAX_COLUMNS}.")
        return rows, columns

    def _small(self, name: str) -> np.ndarray:
        stream = _Stream(self, name)
        if stream.left * stream.dtype.itemsize > _SMALL:
            raise self._fail(f"{name!r} is too large.")
        return stream.take(stream.left).reshape(stream.shape)

    def _open(self, name: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype]:
        try:
            file = self._archive.open(f"{name}.npy")
            version: Any = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
        except KeyError as error:
            raise self._fail(
                f"has no array {name!r}. Write it by scipy.sparse.save_npz."
            ) from error
        except Exception as error:  # as above, and so does NumPy
            raise self._fail(f"the array {name!r} is damaged: {error}.") from error
        return file, shape, dtype

    def _fail(self, message: str) -> DataError:
        return DataError(f"{self.path}: {message}")


class _Stream:
    """One array of the file, read in order."""

    def __init__(self, matrix: NpzMatrix, name: str) -> None:
        self._matrix, self._name = matrix, name
        self._file, self.shape, self.dtype = matrix._open(name)
        # A string or a huge shape must not reach arithmetic on sizes.
        kinds = "SU" if name == "format" else "biuf" if name == "data" else "iu"
        fits = self.dtype.kind in kinds and self.dtype.itemsize <= _SMALL
        if not fits or len(self.shape) > 1 or min(self.shape, default=0) < 0:
            raise matrix._fail(f"the array {name!r} is {self.dtype} {list(self.shape)}.")
        self.left = int(self.shape[0]) if self.shape else 1
        """Elements not taken yet, by the array's own header."""

    def take(self, count: int) -> np.ndarray:
        """Return the next ``count`` elements."""
        size = count * self.dtype.itemsize
        try:
            read = self._file.read(size)
        except Exception as error:  # as above
            raise self._matrix._fail(f"the array {self._name!r} is damaged: {error}.") from error
        if count > self.left or len(read) < size:
            raise self._matrix._fail(f"the array {self._name!r} is cut.")
        self.left -= count
        return np.frombuffer(read, dtype=self.dtype)

    def take_integers(self, count: int) -> np.ndarray:
        """Return the next ``count`` elements as int64; what does not fit becomes negative."""
        return self.take(count).astype(np.int64)
