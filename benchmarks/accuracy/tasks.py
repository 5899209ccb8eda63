"""Image sets as tensors, whole or a part, of the size that a network wants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from qcompile.data.images import ImageSet

__all__ = ["Task", "task"]


@dataclass(frozen=True)
class Task:
    """What to learn and what to judge by.

    Args:
        inputs: float32 [N, C, H, W], of a range that the maker says.
        labels: int64 [N].
        test_inputs: float32 [M, C, H, W].
        test_labels: int64 [M].
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def task(data: ImageSet, *, examples: int, tests: int, side: int, least: float = -1.0) -> Task:
    """Return the first examples of a set, black at ``least`` and white at 1.

    Images get a black margin up to ``side``; larger ones are averaged down to it.
    """

    def tensors(images: NDArray, count: int) -> Tensor:
        x = torch.from_numpy(images[:count].astype("float32")) * ((1 - least) / data.most) + least
        height, width = x.shape[2:]
        if max(height, width) > side:
            return F.adaptive_avg_pool2d(x, side)
        down, across = side - height, side - width
        margins = (across // 2, across - across // 2, down // 2, down - down // 2)
        return F.pad(x, margins, value=least)

    return Task(
        tensors(data.train_images, examples),
        torch.from_numpy(data.train_labels[:examples]),
        tensors(data.test_images, tests),
        torch.from_numpy(data.test_labels[:tests]),
    )
