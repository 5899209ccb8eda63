"""Residual networks for small images: ResNet-20 and -32, QResNet-14 and -20.

Sources: He et al., "Deep residual learning", CVPR 2016, section 4.2 (6n + 2 layers, widths 16, 32
and 64); QuadraLib (Xu et al., MLSys 2022), whose QResNets have a quadratic block for each layer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qcompile.errors import ConfigurationError
from qcompile.models.parts import FIRST_ORDER, Classifier, Kind, at_least_one, unit, width

__all__ = ["ResNet", "qresnet14", "qresnet20", "resnet14", "resnet20", "resnet32"]

_STAGES = (16, 32, 64)


class _Residual(nn.Module):
    """Two units and a way round them."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: Kind) -> None:
        super().__init__()
        self.first = unit(inputs, outputs, 3, kind, stride=stride, activation=nn.ReLU())
        self.second = unit(outputs, outputs, 3, kind)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else unit(inputs, outputs, 1, FIRST_ORDER, stride=stride)
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return y


class ResNet(Classifier):
    """6n + 2 layers in three stages of n residual units, then a linear classifier.

    Args:
        depth: 6n + 2.
        classes: number of outputs.
        channels: of the images.
        scale: factor of every width.
        kind: the arguments of :class:`qcompile.models.parts.Kind`. Ways round that change the
            shape are first-order in any case.

    Shape:
        [batch, channels, height, width] → [batch, classes].

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(
        self,
        depth: int,
        classes: int = 10,
        *,
        channels: int = 3,
        scale: float = 1.0,
        **kind: Any,
    ) -> None:
        at_least_one("ResNet", channels=channels)
        units, rest = divmod(depth - 2, 6)
        if units < 1 or rest:
            raise ConfigurationError(
                f"ResNet: depth must be 6n + 2 with n at least 1, got {depth}."
            )
        of = Kind(**kind)
        inputs = width(_STAGES[0], scale)
        stages: list[nn.Module] = [unit(channels, inputs, 3, of, activation=nn.ReLU())]
        for number, stage in enumerate(_STAGES):
            outputs = width(stage, scale)
            for at in range(units):
                stages.append(_Residual(inputs, outputs, 2 if number and not at else 1, of))
                inputs = outputs
        super().__init__(nn.Sequential(*stages), inputs, classes)


def resnet14(classes: int = 10, **options: Any) -> ResNet:
    """Build QResNet-14's first-order counterpart, 0.18 M parameters."""
    return ResNet(14, classes, **options)


def resnet20(classes: int = 10, **options: Any) -> ResNet:
    """Build ResNet-20, 0.27 M parameters."""
    return ResNet(20, classes, **options)


def resnet32(classes: int = 10, **options: Any) -> ResNet:
    """Build ResNet-32, 0.47 M parameters."""
    return ResNet(32, classes, **options)


def qresnet14(classes: int = 10, *, form: str = "Quadra", **options: Any) -> ResNet:
    """Build QResNet-14, 0.52 M parameters at full width as ``Quadra``."""
    return ResNet(14, classes, form=form, **options)


def qresnet20(classes: int = 10, *, form: str = "Quadra", **options: Any) -> ResNet:
    """Build QResNet-20, 0.81 M parameters at full width as ``Quadra``."""
    return ResNet(20, classes, form=form, **options)
