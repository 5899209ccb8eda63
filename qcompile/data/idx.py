"""MNIST and Fashion-MNIST: files of unsigned bytes in LeCun's IDX format, gzipped or not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompile.data.bounded import read_file
from qcompile.data.image_set import ImageSet
from qcompile.errors import DataError

__all__ = ["EXPECTED", "is_idx", "read_idx", "read_idx_set"]

EXPECTED = "train-images-idx3-ubyte"


def is_idx(folder: Path) -> bool:
    """Whether a folder has files of MNIST's names."""
    return any(_found(folder, n) for n in (EXPECTED, "train-labels-idx1-ubyte"))


def read_idx_set(folder: Path) -> ImageSet:
    """Read MNIST's four files.

    Raises:
        DataError: one is missing or damaged, or they do not fit together.
    """
    found: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    for which in ("train", "t10k"):
        images, labels = (
            _part(folder, f"{which}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
        )
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{folder}: {which} has images {list(images.shape)} and labels "
                f"{list(labels.shape)}, expected [N, H, W] and [N]."
            )
        found.append((images[:, None], labels.astype(np.int64)))
    train, test = found
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{folder}: training and test images differ in size.")
    classes = int(max(train[1].max(), test[1].max())) + 1
    return ImageSet(folder.name, *train, *test, classes)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes in LeCun's IDX format, gzipped or not.

    Raises:
        DataError: it is another format, or shorter or longer than its header says.
    """
    content = read_file(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != 8 or not 1 <= content[3] <= 4:
        raise DataError(f"{path}: is no IDX file of unsigned bytes.")
    axes = content[3]
    start = 4 + 4 * axes
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    if len(content) < start or len(content) - start != math.prod(sizes):
        raise DataError(
            f"{path}: the header says {sizes}, {math.prod(sizes):,} bytes, but "
            f"{max(len(content) - start, 0):,} follow; fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _found(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _part(folder: Path, name: str) -> NDArray[np.uint8]:
    path = _found(folder, name)
    if path is None:
        raise DataError(f"{folder}: {name} is missing.")
    return read_idx(path)
