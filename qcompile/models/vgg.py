"""VGG networks for small images: QuadraLib's QVGG-7, and VGG-13 and VGG-7 of the first order.

Sources: VGG (Simonyan and Zisserman, arXiv 1409.1556, table 1) with batch norms; QuadraLib (Xu et
al., MLSys 2022), whose QVGG-7 has one quadratic block for each two layers of a VGG-13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.models.parts import Classifier, Kind, at_least_one, unit, width

__all__ = ["POOL", "VGG", "qvgg7", "vgg7", "vgg13"]

POOL = 0
"""Stands for a max-pooling in a list of widths."""

SEVEN = (64, 64, POOL, 128, 128, POOL, 256, POOL, 512, POOL, 512, POOL)
THIRTEEN = (64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)


class VGG(Classifier):
    """Convolutions of 3×3 with batch norm and ReLU, poolings between, a linear classifier.

    Args:
        widths: channels of each convolution, :data:`POOL` for a pooling after it.
        classes: number of outputs.
        channels: of the images.
        scale: factor of every width.
        kind: form, batch norms and memory level of quadratic blocks: the arguments of
            :class:`qcompile.models.parts.Kind`.

    Shape:
        [batch, channels, height, width] → [batch, classes]; height and width are at least 2 for
        each pooling, doubled each time: 32 for the five poolings of these networks.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int = 10,
        *,
        channels: int = 3,
        scale: float = 1.0,
        **kind: Any,
    ) -> None:
        at_least_one("VGG", channels=channels)
        if not any(widths):
            raise ConfigurationError(f"VGG: widths {tuple(widths)} hold no width.")
        stages: list[nn.Module] = []
        for plain, following in zip(widths, (*widths[1:], None), strict=True):
            if plain == POOL:
                continue
            pool = nn.MaxPool2d(2) if following == POOL else None
            outputs = width(plain, scale)
            stages.append(unit(channels, outputs, 3, Kind(**kind), activation=nn.ReLU(), pool=pool))
            channels = outputs
        super().__init__(nn.Sequential(*stages), channels, classes)


def vgg13(classes: int = 10, **options: Any) -> VGG:
    """Build VGG-13: ten first-order convolutions, 9.42 M parameters at full width."""
    return VGG(THIRTEEN, classes, **options)


def vgg7(classes: int = 10, **options: Any) -> VGG:
    """Build QVGG-7's first-order counterpart: seven convolutions, 4.10 M parameters."""
    return VGG(SEVEN, classes, **options)


def qvgg7(classes: int = 10, *, form: str = "Quadra", **options: Any) -> VGG:
    """Build QVGG-7: seven quadratic blocks, 12.30 M parameters at full width as ``Quadra``."""
    return VGG(SEVEN, classes, form=form, **options)
