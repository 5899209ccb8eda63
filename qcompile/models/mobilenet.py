"""MobileNet for small images, and QMobileNet, whose separable convolutions are quadratic.

Source: Howard et al., "MobileNets", arXiv 1704.04861, table 1, without its first and its last
halving, which images of 32×32 have no room for.
"""

from __future__ import annotations

from torch import Tensor, nn

from qcompile.errors import ConfigurationError
from qcompile.models.parts import Kind, unit, width

__all__ = ["MobileNet", "mobilenet", "qmobilenet"]

_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1))
"""Channels and stride of each depthwise separable convolution."""


class MobileNet(nn.Module):
    """Depthwise separable convolutions, each a depthwise and a pointwise unit, and a classifier.

    Args:
        classes: number of outputs.
        channels: of the images.
        scale: factor of every width.
        form: of the quadratic neurons; ``None`` for first-order convolutions.
        batch_norm: of quadratic blocks.

    Shape:
        [batch, channels, height, width] → [batch, classes].

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        channels: int = 3,
        scale: float = 1.0,
        form: str | None = None,
        batch_norm: str = "both",
    ) -> None:
        super().__init__()
        if classes < 1 or channels < 1:
            raise ConfigurationError(
                f"MobileNet: classes and channels must be positive, got {classes} and {channels}."
            )
        kind = Kind(form, batch_norm)
        inputs = width(32, scale)
        layers = [unit(channels, inputs, 3, kind, activation=nn.ReLU())]
        for plain, stride in _LAYERS:
            outputs = width(plain, scale)
            layers += [
                unit(inputs, inputs, 3, kind, stride=stride, groups=inputs, activation=nn.ReLU()),
                unit(inputs, outputs, 1, kind, activation=nn.ReLU()),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to [batch, classes]."""
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


def mobilenet(classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> MobileNet:
    """Build the first-order network."""
    return MobileNet(classes, channels=channels, scale=scale)


def qmobilenet(
    classes: int = 10,
    *,
    channels: int = 3,
    scale: float = 1.0,
    form: str = "Quadra",
    batch_norm: str = "both",
) -> MobileNet:
    """Build the quadratic network."""
    return MobileNet(classes, channels=channels, scale=scale, form=form, batch_norm=batch_norm)
