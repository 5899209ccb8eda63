"""MobileNet for small images, and QMobileNet, whose separable convolutions are quadratic.

Source: Howard et al., "MobileNets", arXiv 1704.04861, table 1, without its first and its last
halving, which images of 32×32 have no room for.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qcompile.models.parts import Classifier, Kind, at_least_one, unit, width

__all__ = ["MobileNet", "mobilenet", "qmobilenet"]

_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1))
"""Channels and stride of each depthwise separable convolution."""


class MobileNet(Classifier):
    """Depthwise separable convolutions, each a depthwise and a pointwise unit, and a classifier.

    Args:
        classes: number of outputs.
        channels: of the images.
        scale: factor of every width.
        kind: the arguments of :class:`qcompile.models.parts.Kind`.

    Shape:
        [batch, channels, height, width] → [batch, classes].

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(
        self, classes: int = 10, *, channels: int = 3, scale: float = 1.0, **kind: Any
    ) -> None:
        at_least_one("MobileNet", channels=channels)
        of = Kind(**kind)
        inputs = width(32, scale)
        layers = [unit(channels, inputs, 3, of, activation=nn.ReLU())]
        for plain, stride in _LAYERS:
            outputs = width(plain, scale)
            layers += [
                unit(inputs, inputs, 3, of, stride=stride, groups=inputs, activation=nn.ReLU()),
                unit(inputs, outputs, 1, of, activation=nn.ReLU()),
            ]
            inputs = outputs
        super().__init__(nn.Sequential(*layers), inputs, classes)


def mobilenet(classes: int = 10, **options: Any) -> MobileNet:
    """Build the first-order network."""
    return MobileNet(classes, **options)


def qmobilenet(classes: int = 10, *, form: str = "Quadra", **options: Any) -> MobileNet:
    """Build the quadratic network."""
    return MobileNet(classes, form=form, **options)
