"""Character n-grams of short texts as sparse features, without a loop over texts."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from qcompile.data.compressed_rows import Rows
from qcompile.errors import DataError

__all__ = ["NgramEncoder", "normalised"]

SIZES = (2, 3, 4)
"""Letters of an n-gram, the marks of the text's beginning and end included."""

_BEGIN, _END = "\x02", "\x03"
_TEXTS = 1 << 16  # encoded at a time, to bound memory


def normalised(text: str) -> str:
    """Return a text in lower case, composed (NFC), with single blanks between its words."""
    return " ".join(unicodedata.normalize("NFC", text.lower()).split())


@dataclass(frozen=True)
class NgramEncoder:
    """Turns texts into the tf-idf of the n-grams that were most frequent in training.

    An n-gram is known by a 64-bit hash. Its weight is its count in the text times
    ln((1 + n) / (1 + d)) + 1, where it occurs d times in the n training texts; a text's weights
    have the norm 1 (Salton and Buckley, 1988; smoothed as in scikit-learn).

    Args:
        hashes: uint64 [num_features], ascending.
        weights: float32 [num_features], the logarithmic factor.
    """

    hashes: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, texts: Sequence[str], most: int) -> NgramEncoder:
        """Choose the ``most`` most frequent n-grams of normalised texts.

        Raises:
            DataError: there are no texts, or ``most`` is below 1.
        """
        if not texts or most < 1:
            raise DataError(f"fit: {len(texts)} texts, {most} n-grams; expected one or more.")
        found = [_counted(_windows(texts, size)[1]) for size in SIZES]
        hashes = np.concatenate([hashes for hashes, _ in found])
        counts = np.concatenate([counts for _, counts in found])
        # By falling count, and among equals by hash, so that the choice is always the same.
        chosen = np.lexsort((hashes, -counts))[:most]
        chosen = chosen[np.argsort(hashes[chosen])]
        weights = np.log((1 + len(texts)) / (1 + counts[chosen])) + 1
        return cls(hashes[chosen], np.maximum(weights, 0).astype(np.float32))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> NgramEncoder:
        """Read what :meth:`write` wrote, so that a server needs no training names.

        Raises:
            DataError: the file cannot be read or is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                hashes, weights = arrays["hashes"], arrays["weights"]
        except Exception as error:  # NumPy and zipfile raise many kinds on damaged files
            raise DataError(f"{path}: cannot be read as an n-gram encoder: {error}.") from error
        if (
            hashes.dtype != np.uint64
            or weights.dtype != np.float32
            or not hashes.shape == weights.shape == (hashes.size,)
            or not hashes.size
            or not (hashes[1:] > hashes[:-1]).all()
            or not np.isfinite(weights).all()
        ):
            raise DataError(f"{path}: is no n-gram encoder: its arrays are not as they should be.")
        return cls(hashes, weights)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file of 12 bytes a feature, under a temporary name first.

        Raises:
            DataError: the file cannot be written.
        """
        target = Path(path)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, hashes=self.hashes, weights=self.weights)
            temporary.replace(target)
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error.strerror or error}.") from error
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def num_features(self) -> int:
        """Number of features."""
        return len(self.hashes)

    def encode(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return the features of any texts, scipy CSR float32 [n, num_features].

        Raises:
            DataError: ``texts`` is a single string or holds something else than strings.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("encode: expected a list of strings, e.g. encode(['Genf']).")
        parts = [self._matrix([])]
        for start in range(0, len(texts), _TEXTS):
            parts.append(self._matrix([normalised(t) for t in texts[start : start + _TEXTS]]))
        return sparse.vstack(parts, format="csr")

    def rows(self, texts: Sequence[str]) -> Rows:
        """Return the features of normalised texts, few enough to be encoded at once."""
        keys = [np.zeros(0, dtype=np.int64)]
        for size in SIZES:
            row, hashes = _windows(texts, size)
            column = np.minimum(np.searchsorted(self.hashes, hashes), self.num_features - 1)
            known = self.hashes[column] == hashes
            keys.append(row[known] * self.num_features + column[known])
        # One number for row and column: sorted, equal ones are the counts.
        key, counts = _counted(np.concatenate(keys))
        row, column = np.divmod(key, self.num_features)
        values = counts * self.weights[column].astype(np.float64)
        norms = np.sqrt(np.bincount(row, weights=values**2, minlength=len(texts)))
        indptr = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=len(texts)), out=indptr[1:])
        return Rows(indptr, column.astype(np.int32), (values / norms[row]).astype(np.float32))

    def _matrix(self, texts: Sequence[str]) -> sparse.csr_matrix:
        rows = self.rows(texts)
        arrays: Any = (rows.values, rows.indices, rows.indptr)
        return sparse.csr_matrix(arrays, (len(rows), self.num_features), dtype=np.float32)


def _windows(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every window of ``size`` letters.

    Returns:
        The text of each window, int64, ascending, and its hash, uint64.
    """
    marked = "".join([f"{_BEGIN}{text}{_END}" for text in texts])
    letters = np.frombuffer(marked.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.fromiter((len(text) + 2 for text in texts), np.int64, len(texts))
    # A window begins at each letter but a text's last size - 1.
    row = np.repeat(np.arange(len(texts)), np.maximum(lengths - size + 1, 0))
    first = np.cumsum(np.maximum(lengths - size + 1, 0)) - np.maximum(lengths - size + 1, 0)
    begin = np.cumsum(lengths) - lengths
    position = np.arange(len(row)) + (begin - first)[row]
    value = np.full(len(row), size, dtype=np.uint64)
    for offset in range(size):
        value = value * np.uint64(0x100000001B3) + letters[position + offset]
    # The finaliser of splitmix64; products wrap around on purpose.
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return row, value ^ (value >> np.uint64(31))


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort ``values`` in place; return the different ones, ascending, and how often each occurs."""
    values.sort()
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
    return values[starts], np.diff(np.append(starts, len(values)))
