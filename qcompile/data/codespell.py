"""Misspellings and their corrections, from the dictionary of the package ``codespell``.

An extreme classification task of the size for tests and demonstrations: a word's character
n-grams in, one of 18,841 corrections out. The data is read from the installed package and is not
part of this one; it is licensed CC BY-SA 3.0. Nothing here needs torch, so that a server can
encode words with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from qcompile.data.compressed_rows import Rows, merge_rows
from qcompile.errors import DataError

if TYPE_CHECKING:
    from qcompile.data.sparse_dataset import SparseDataset

__all__ = ["FEATURES", "WIDTH", "Codespell", "datasets", "encode", "encode_sparse", "load"]

FEATURES = 35_000
"""Number of feature ids, 0 included, which stands for no feature."""

WIDTH = 64
"""Most features of one word: the n-grams of 21 letters; of longer words the last are left out."""

TEST_SIZE = 5_000

_SIZES = (2, 3, 4)  # letters of an n-gram, its marks of beginning and end included
_BEGIN, _END = "\x02", "\x03"
_REMEDY = 'Install it: python -m pip install "codespell>=2.4".'


@dataclass(frozen=True)
class Codespell:
    """The task, split in two; every label of a test word also occurs in training.

    Args:
        train_ids: int64 [n, WIDTH], feature ids of each word, padded with 0 on the right.
        train_labels: int64 [n, T], indices into ``labels``, padded with -1 on the right.
        test_ids: likewise, for 5,000 other words.
        test_labels: likewise.
        train_words: the misspelled words of the rows.
        test_words: likewise.
        labels: the corrections, sorted.
    """

    train_ids: np.ndarray
    train_labels: np.ndarray
    test_ids: np.ndarray
    test_labels: np.ndarray
    train_words: list[str]
    test_words: list[str]
    labels: list[str]


def load(seed: int = 0) -> Codespell:
    """Read the dictionary of the installed package.

    Args:
        seed: chooses the test words.

    Raises:
        DataError: the package is not installed, or its dictionary is not as expected.
    """
    corrections = _read(_find())
    words = list(corrections)
    labels = sorted({label for found in corrections.values() for label in found})
    number = {label: i for i, label in enumerate(labels)}
    most = max(len(found) for found in corrections.values())
    targets = np.full((len(words), most), -1, dtype=np.int64)
    for row, word in enumerate(words):
        found = corrections[word]
        targets[row, : len(found)] = [number[label] for label in found]
    train, test = _split(targets, len(labels), seed)
    ids = encode(words)
    return Codespell(
        train_ids=ids[train],
        train_labels=targets[train],
        test_ids=ids[test],
        test_labels=targets[test],
        train_words=[words[i] for i in train],
        test_words=[words[i] for i in test],
        labels=labels,
    )


def datasets(seed: int = 0) -> tuple[SparseDataset, SparseDataset]:
    """Return the task as datasets for training and for testing.

    Takes and raises the same as :func:`load`.
    """
    from qcompile.data.sparse_dataset import SparseDataset

    task = load(seed)
    train = SparseDataset(_features(task.train_ids), _csr(task.train_labels, len(task.labels)))
    test = SparseDataset(_features(task.test_ids), _csr(task.test_labels, len(task.labels)))
    return train, test


def encode_sparse(words: Sequence[str]) -> sparse.csr_matrix:
    """Return the features of typed words as in :func:`datasets`, CSR float32 [n, FEATURES].

    A feature's value is how often the word has its n-gram; a word's values have the norm 1.

    Raises:
        DataError: as :func:`encode`.
    """
    return _features(encode(words))


def encode(words: Sequence[str]) -> np.ndarray:
    """Return the feature ids of typed words, int64 [n, WIDTH], padded with 0 on the right.

    A feature is a hashed n-gram of two to four letters of the word between marks of its beginning
    and end, case and surrounding blanks ignored; short n-grams come first.

    Raises:
        DataError: ``words`` is a single string or holds something else than strings.
    """
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise DataError("codespell.encode: expected a list of strings, e.g. encode(['teh']).")
    ids = np.zeros((len(words), WIDTH), dtype=np.int64)
    if not len(words):
        return ids
    marked = [f"{_BEGIN}{word.strip().lower()[:WIDTH]}{_END}" for word in words]
    lengths = np.array([len(word) for word in marked])
    letters = np.array(marked, dtype=f"U{lengths.max()}").view(np.uint32)
    letters = letters.reshape(len(words), -1).astype(np.uint64)
    filled = np.zeros(len(words), dtype=np.int64)
    for size in _SIZES:
        hashed = _hash_windows(letters, size)
        for position in range(hashed.shape[1]):
            rows = np.flatnonzero((position + size <= lengths) & (filled < WIDTH))
            ids[rows, filled[rows]] = hashed[rows, position]
            filled[rows] += 1
    return ids


def _features(ids: np.ndarray) -> sparse.csr_matrix:
    """Turn padded feature ids int64 [n, WIDTH] into CSR rows of norm 1."""
    features = _csr(np.where(ids > 0, ids, -1), FEATURES)
    row = np.repeat(np.arange(len(ids)), np.diff(features.indptr))
    norms = np.sqrt(np.bincount(row, weights=features.data.astype(np.float64) ** 2))
    features.data /= norms[row].astype(np.float32)
    return features


def _csr(padded: np.ndarray, columns: int) -> sparse.csr_matrix:
    """Count ids int64 [n, T], padded with -1, in a CSR matrix float32 [n, columns]."""
    filled = padded >= 0
    indptr = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    values = np.ones(indptr[-1], dtype=np.float32)
    rows, _ = merge_rows(Rows(indptr, padded[filled], values))
    return sparse.csr_matrix((rows.values, rows.indices, rows.indptr), (len(padded), columns))


def _hash_windows(letters: np.ndarray, size: int) -> np.ndarray:
    """Hash every window of ``size`` letters to 1 … FEATURES - 1; letters uint64 [n, length]."""
    count = max(letters.shape[1] - size + 1, 0)
    value = np.full((len(letters), count), size, dtype=np.uint64)
    for offset in range(size):
        value = value * np.uint64(0x100000001B3) + letters[:, offset : offset + count]
    # The finaliser of splitmix64; products wrap around on purpose.
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return (value % np.uint64(FEATURES - 1)).astype(np.int64) + 1


def _find() -> Path:
    try:
        path = Path(str(resources.files("codespell_lib") / "data" / "dictionary.txt"))
    except ModuleNotFoundError as error:
        raise DataError(f"codespell: the package is not installed. {_REMEDY}") from error
    if not path.is_file():
        raise DataError(f"codespell: {path} is missing from the installed package. {_REMEDY}")
    return path


def _read(path: Path) -> dict[str, list[str]]:
    """Parse lines of ``wrong->right`` or ``wrong->right, other, [reason]``."""
    corrections: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        word, arrow, rest = line.partition("->")
        # What follows the last comma is the reason why the word is not corrected on its own.
        choices = rest.rpartition(",")[0] or rest
        found = [choice.strip() for choice in choices.split(",") if choice.strip()]
        if not (arrow and word and found):
            raise DataError(f"codespell: {path}, line {number}: not 'wrong->right': {line[:80]!r}.")
        known = corrections.setdefault(word.lower(), [])
        known += [choice for choice in dict.fromkeys(found) if choice not in known]
    if len(corrections) <= 2 * TEST_SIZE:
        raise DataError(f"codespell: {path} has {len(corrections)} words only. {_REMEDY}")
    return corrections


def _split(targets: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows for training and for testing; each label keeps a row for training."""
    left = np.bincount(targets[targets >= 0], minlength=classes)
    chosen = np.zeros(len(targets), dtype=bool)
    count = 0
    for row in np.random.default_rng(seed).permutation(len(targets)):
        own = targets[row][targets[row] >= 0]
        if (left[own] > 1).all():
            left[own] -= 1
            chosen[row] = True
            count += 1
            if count == TEST_SIZE:
                break
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
