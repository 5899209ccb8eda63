"""CIFAR-10 and CIFAR-100 from a folder: the binary version, or Python's without running a pickle.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009. A binary record
is one label (of CIFAR-100 two, the coarse one first) and 3·32·32 bytes, channel first; Python's
files have the same in rows of an array, and the labels in a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompile.data.bounded import read_file
from qcompile.data.image_set import ImageSet
from qcompile.data.pickled_arrays import read_pickled_arrays
from qcompile.errors import DataError

__all__ = ["EXPECTED", "is_cifar", "read_cifar"]

_PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
EXPECTED = "data_batch_1.bin or data_batch_1 (CIFAR-10), train.bin or train (CIFAR-100)"

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class _Layout:
    """Files of one set.

    Args:
        name: of the set.
        train: files to learn from.
        test: file to test on.
        classes: number of them.
        labels: in a binary record; the last one counts.
        key: of the labels in Python's files; ``None`` for binary ones.
    """

    name: str
    train: tuple[str, ...]
    test: str
    classes: int
    labels: int = 1
    key: str | None = None


_LAYOUTS = (
    _Layout("cifar-10", tuple(f"{n}.bin" for n in _BATCHES), "test_batch.bin", 10),
    _Layout("cifar-10", _BATCHES, "test_batch", 10, key="labels"),
    _Layout("cifar-100", ("train.bin",), "test.bin", 100, labels=2),
    _Layout("cifar-100", ("train",), "test", 100, key="fine_labels"),
)


def is_cifar(folder: Path) -> bool:
    """Whether a folder has files of CIFAR's names."""
    return _layout(folder) is not None


def read_cifar(folder: Path) -> ImageSet:
    """Read CIFAR-10 or CIFAR-100, the fine labels.

    Raises:
        DataError: a file is missing or damaged, a pickle holds what it should not, or a label is
            out of range.
    """
    layout = _layout(folder)
    if layout is None:
        raise DataError(f"{folder}: no CIFAR is there: expected {EXPECTED}.")
    parts = [_part(folder / name, layout) for name in layout.train]
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return ImageSet(
        layout.name, images, labels, *_part(folder / layout.test, layout), layout.classes
    )


def _layout(folder: Path) -> _Layout | None:
    found = (each for each in _LAYOUTS if (folder / each.train[0]).is_file())
    beside = (each for each in _LAYOUTS if (folder / each.test).is_file())
    return next(found, None) or next(beside, None)


def _part(path: Path, layout: _Layout) -> Part:
    images, labels = _binary(path, layout) if layout.key is None else _pickled(path, layout.key)
    if labels.min() < 0 or labels.max() >= layout.classes:
        raise DataError(
            f"{path}: has labels {labels.min()} to {labels.max()}, so this is not {layout.name}, "
            f"which has {layout.classes} classes."
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _binary(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    content, size = read_file(path), layout.labels + _PIXELS
    if not content or len(content) % size:
        raise DataError(
            f"{path}: {len(content):,} bytes are no whole number of {layout.name}'s records of "
            f"{size}; fetch the binary version again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, layout.labels :], records[:, layout.labels - 1]


def _pickled(path: Path, key: str) -> Part:
    found = read_pickled_arrays(path)
    images, labels = found.get("data"), found.get(key)
    if not isinstance(images, np.ndarray) or images.shape[1:] != (_PIXELS,) or not len(images):
        raise DataError(f"{path}: has no array 'data' of images [N, {_PIXELS}].")
    if (
        not isinstance(labels, list)
        or len(labels) != len(images)
        or not all(type(label) is int for label in labels)
    ):
        raise DataError(f"{path}: has no list {key!r} of {len(images):,} whole numbers.")
    # Python integers from a file may be larger than any NumPy type.
    return images, np.array([min(max(label, -1), 1 << 30) for label in labels], np.int64)
