"""Image sets as networks take them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qcompile.errors import DataError

__all__ = ["image_tensors"]


def image_tensors(images: NDArray[np.uint8], most: int = 255, side: int | None = None) -> Tensor:
    """Return images in −1, black, to 1.

    Args:
        images: uint8 [N, C, H, W].
        most: the value of white.
        side: makes squares of so many pixels: scaled by a whole number, as large as fits, with
            black margins; ``None`` leaves the size.

    Returns:
        float32 [N, C, H, W], or [N, C, side, side].

    Raises:
        DataError: the images are larger than ``side``.
    """
    scaled = torch.from_numpy(images.astype(np.float32) * (2 / most) - 1)
    if side is None:
        return scaled
    height, width = scaled.shape[2:]
    factor = side // max(height, width)
    if not factor:
        raise DataError(f"images: {height}×{width} pixels do not fit into {side}×{side}.")
    if factor > 1:
        scaled = F.interpolate(scaled, scale_factor=float(factor), mode="bilinear")
    top, left = (side - height * factor) // 2, (side - width * factor) // 2
    bottom, right = side - height * factor - top, side - width * factor - left
    return F.pad(scaled, (left, right, top, bottom), value=-1.0)
