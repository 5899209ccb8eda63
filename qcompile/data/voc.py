"""Detection sets in folders of Pascal VOC's layout: ImageSets/Main, Annotations and JPEGImages."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompile.data.bounded import read_file
from qcompile.data.detection_set import Annotated
from qcompile.data.voc_annotation import read_annotation
from qcompile.errors import DataError

__all__ = ["CLASSES", "VOC"]

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""Of the challenge; label i is ``CLASSES[i]``."""

_MOST_LIST_BYTES = 16 << 20
_MOST_IMAGE_BYTES = 64 << 20
_MOST_PIXELS = 64 << 20
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


class VOC:
    """The images of one split, decoded when they are asked for.

    Args:
        folder: with ``ImageSets/Main``, ``Annotations`` and ``JPEGImages`` (.jpg or .png).
        split: a file of ImageSets/Main: ``train``, ``val``, ``trainval`` or ``test``.
        side: images are scaled to squares of so many pixels.
        classes: names of the classes.

    Raises:
        DataError: there is no such split, it names no images, or names that lead elsewhere; and
            when an image is asked for: it or its annotation is missing or damaged, or it has more
            than 67 million pixels; Pillow is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str = "train",
        side: int = 300,
        classes: Sequence[str] = CLASSES,
    ) -> None:
        self.folder, self.side, self.classes = Path(folder), side, tuple(classes)
        path = self.folder / "ImageSets" / "Main" / f"{split}.txt"
        lines = read_file(path, _MOST_LIST_BYTES).decode("utf-8", "replace").splitlines()
        self.names = [line.split()[0] for line in lines if line.strip()]
        wrong = [name for name in self.names if not _NAME.fullmatch(name)]
        if wrong or not self.names:
            found = f"names {wrong[0][:60]!r}" if wrong else "names no images"
            raise DataError(f"{path}: {found}; expected the name of an image in each line.")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Annotated:
        """Decode an image and read its objects."""
        name = self.names[index]
        path = self.folder / "Annotations" / f"{name}.xml"
        boxes, labels, difficult = read_annotation(path, self.classes)
        image, width, height = self._image(name)
        sides = np.array([width, height, width, height], np.float32)
        shares = np.clip(boxes / sides, 0, 1).astype(np.float32)
        if not (shares[:, :2] < shares[:, 2:]).all():
            raise DataError(f"{path}: has a box outside its image of {width}×{height} pixels.")
        return Annotated(image, shares, labels, difficult)

    def _image(self, name: str) -> tuple[NDArray[np.uint8], int, int]:
        """Return uint8 [3, side, side], and the width and the height that the image had."""
        try:
            from PIL import Image
        except ImportError as error:
            raise DataError(
                "images are decoded by Pillow: python -m pip install 'torch-qcompile[data]'."
            ) from error
        folder = self.folder / "JPEGImages"
        path = folder / f"{name}.png"
        path = path if path.is_file() else folder / f"{name}.jpg"
        content = read_file(path, _MOST_IMAGE_BYTES)
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as opened:
                width, height = opened.size
                if width * height > _MOST_PIXELS:
                    raise DataError(f"{path}: {width:,}×{height:,} pixels are too many.")
                scaled = opened.convert("RGB").resize((self.side, self.side))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: cannot be decoded: {error}.") from error
        return np.asarray(scaled).transpose(2, 0, 1), width, height
