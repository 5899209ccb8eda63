"""Small image sets from a folder: Fashion-MNIST or MNIST (IDX), CIFAR-10 (binary), or the digits.

scikit-learn's digits need no download; Fashion-MNIST is Debian's package dataset-fashion-mnist.
Files are anybody's: sizes are checked against what they claim before anything is allocated.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import DataError

__all__ = ["FASHION_MNIST", "ImageSet", "load", "read_idx"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts it."""

_MOST_BYTES = 1 << 30
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_CIFAR = ("data_batch_1.bin", "test_batch.bin")
_CIFAR_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class ImageSet:
    """Images and their classes.

    Args:
        name: of the set.
        train_images: uint8 [N, C, H, W].
        train_labels: int64 [N].
        test_images: uint8 [M, C, H, W].
        test_labels: int64 [M].
        classes: number of classes; labels are below.
        most: the value of white.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: int
    most: int = 255


def load(source: str | os.PathLike[str] | None = None) -> ImageSet:
    """Return an image set.

    Args:
        source: ``digits``, ``fashion-mnist`` (Debian's folder), or a folder with the files of
            Fashion-MNIST, MNIST or CIFAR-10, gzipped or not; ``None`` for Fashion-MNIST where it is
            installed, else the digits.

    Raises:
        DataError: the folder has none of them, or a file is damaged.
    """
    if source is None:
        source = "fashion-mnist" if FASHION_MNIST.is_dir() else "digits"
    if source == "digits":
        return _digits()
    folder = FASHION_MNIST if source == "fashion-mnist" else Path(source)
    if any(_found(folder, name) for name in _IDX):
        return _idx_set(folder)
    if any((folder / name).is_file() for name in _CIFAR):
        return _cifar(folder)
    hint = (
        "install Debian's package dataset-fashion-mnist, or name a folder"
        if folder == FASHION_MNIST
        else f"expected {_IDX[0]} (Fashion-MNIST, MNIST) or {_CIFAR[0]} (CIFAR-10, the binary "
        "version)"
    )
    raise DataError(f"{folder}: no image set is there: {hint}.")


def _digits() -> ImageSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn: python -m pip install 'torch-qcompile[data]'."
        ) from error
    found = load_digits()
    images = found.images.astype(np.uint8)[:, None]
    labels = found.target.astype(np.int64)
    held = np.arange(len(images)) % 5 == 0
    return ImageSet("digits", images[~held], labels[~held], images[held], labels[held], 10, most=16)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes in LeCun's IDX format, gzipped or not.

    Raises:
        DataError: it is another format, or shorter or longer than its header says.
    """
    content = _read(path)
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


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path}: holds more than {_MOST_BYTES:,} bytes.")
    return content


def _found(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _idx_set(folder: Path) -> ImageSet:
    found: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
    for which in ("train", "t10k"):
        images, labels = (
            _idx_part(folder, f"{which}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
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


def _idx_part(folder: Path, name: str) -> NDArray[np.uint8]:
    path = _found(folder, name)
    if path is None:
        raise DataError(f"{folder}: {name} is missing.")
    return read_idx(path)


def _cifar(folder: Path) -> ImageSet:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    batches = []
    for name in names:
        content = _read(folder / name)
        if not content or len(content) % _CIFAR_RECORD:
            raise DataError(
                f"{folder / name}: {len(content):,} bytes are no whole number of CIFAR-10's "
                f"records of {_CIFAR_RECORD}; take the binary version."
            )
        batches.append(np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD))
    train, test = np.concatenate(batches[:5]), batches[5]
    if max(train[:, 0].max(), test[:, 0].max()) > 9:
        raise DataError(f"{folder}: a label is above 9, so this is not CIFAR-10.")
    images = [part[:, 1:].reshape(-1, 3, 32, 32) for part in (train, test)]
    labels = [part[:, 0].astype(np.int64) for part in (train, test)]
    return ImageSet("cifar-10", images[0], labels[0], images[1], labels[1], 10)
