"""VGG networks for small images: QuadraLib's QVGG-7, and VGG-13 and VGG-7 of the first order.

Sources: VGG (Simonyan and Zisserman, arXiv 1409.1556, table 1) with batch norms; QuadraLib (Xu et
al., MLSys 2022), whose QVGG-7 has one quadratic block for each two layers of a VGG-13.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.nn import QuadraticBlock, QuadraticConv2d

POOL = 0
"""Stands for a max-pooling in a list of widths."""

SEVEN = (64, 64, POOL, 128, 128, POOL, 256, POOL, 512, POOL, 512, POOL)
THIRTEEN = (64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)


class VGG(nn.Module):
    """Convolutions of 3×3 with batch norm and ReLU, poolings between, a linear classifier.

    Args:
        widths: channels of each convolution, :data:`POOL` for a pooling.
        classes: number of outputs.
        channels: of the images.
        scale: factor of every width.
        form: of the quadratic neurons; ``None`` for first-order convolutions.
        batch_norm: of quadratic blocks: ``branch``, ``outer``, ``both`` or ``none``.
        memory: level of quadratic blocks: 0, 1 or 3.

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
        form: str | None = None,
        batch_norm: str = "both",
        memory: int = 0,
    ) -> None:
        super().__init__()
        if classes < 1 or channels < 1 or not scale > 0 or not any(widths):
            raise ConfigurationError(
                f"VGG: classes, channels and scale must be positive and widths hold at least one "
                f"width, got {classes}, {channels}, {scale} and {tuple(widths)}."
            )
        stages: list[nn.Module] = []
        for width, following in zip(widths, (*widths[1:], None), strict=True):
            pool = nn.MaxPool2d(2) if following == POOL else None
            if width == POOL:
                continue
            outputs = max(1, round(width * scale))
            if form is None:
                stages += [_first_order(channels, outputs)] + ([pool] if pool else [])
            else:
                layer = QuadraticConv2d(channels, outputs, 3, padding=1, bias=False, form=form)
                stages.append(QuadraticBlock(layer, batch_norm, nn.ReLU(), pool, memory=memory))
            channels = outputs
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, channels, height, width] to [batch, classes]."""
        y: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


def _first_order(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def vgg13(classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> VGG:
    """Build VGG-13: ten first-order convolutions, 9.42 M parameters at full width."""
    return VGG(THIRTEEN, classes, channels=channels, scale=scale)


def vgg7(classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> VGG:
    """Build QVGG-7's first-order counterpart: seven convolutions, 4.10 M parameters."""
    return VGG(SEVEN, classes, channels=channels, scale=scale)


def qvgg7(
    classes: int = 10,
    *,
    channels: int = 3,
    scale: float = 1.0,
    form: str = "Quadra",
    batch_norm: str = "both",
    memory: int = 0,
) -> VGG:
    """Build QVGG-7: seven quadratic blocks, 12.30 M parameters at full width as ``Quadra``."""
    return VGG(
        SEVEN,
        classes,
        channels=channels,
        scale=scale,
        form=form,
        batch_norm=batch_norm,
        memory=memory,
    )
