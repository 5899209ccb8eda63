"""What a detection set is, wherever its images come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Annotated", "DetectionSet"]


@dataclass(frozen=True)
class Annotated:
    """An image and the objects in it.

    Args:
        image: uint8 [3, H, W].
        boxes: float32 [n, 4]: left, top, right and bottom as shares of width and height.
        labels: int64 [n], of the objects.
        difficult: bool [n]; these are neither learnt nor counted.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]


class DetectionSet(Protocol):
    """A sequence of annotated images of one size."""

    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> Annotated:
        """Return one."""
