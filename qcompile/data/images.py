"""Small image sets by name or from a folder.

scikit-learn's digits need no download; Fashion-MNIST is Debian's package dataset-fashion-mnist.
Files are anybody's: sizes are checked against what they claim before anything is allocated.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from qcompile.data import cifar, idx
from qcompile.data.idx import read_idx
from qcompile.data.image_set import ImageSet
from qcompile.errors import DataError

__all__ = ["FASHION_MNIST", "ImageSet", "load", "read_idx"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts it."""


def load(source: str | os.PathLike[str] | None = None) -> ImageSet:
    """Return an image set.

    Args:
        source: ``digits``, ``fashion-mnist`` (Debian's folder), or a folder with the files of
            Fashion-MNIST or MNIST, gzipped or not, or of CIFAR-10 or CIFAR-100, the binary or the
            Python version; ``None`` for Fashion-MNIST where it is installed, else the digits.

    Raises:
        DataError: the folder has none of them, or a file is damaged.
    """
    if source is None:
        source = "fashion-mnist" if FASHION_MNIST.is_dir() else "digits"
    if source == "digits":
        return _digits()
    folder = FASHION_MNIST if source == "fashion-mnist" else Path(source)
    if idx.is_idx(folder):
        return idx.read_idx_set(folder)
    if cifar.is_cifar(folder):
        return cifar.read_cifar(folder)
    hint = (
        "install Debian's package (apt-get install dataset-fashion-mnist), or name a folder with "
        "its four files"
        if folder == FASHION_MNIST
        else f"expected {idx.EXPECTED} (Fashion-MNIST, MNIST), {cifar.EXPECTED}"
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
