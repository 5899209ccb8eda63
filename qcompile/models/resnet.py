"""Residual networks for small images: ResNet-20 and -32, QResNet-14 and -20.

Sources: He et al., "Deep residual learning", CVPR 2016, section 4.2 (6n + 2 layers, widths 16, 32
and 64); QuadraLib (Xu et al., MLSys 2022), whose QResNets have a quadratic block for each layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from qcompile.errors import ConfigurationError
from qcompile.models.parts import Kind, unit, width

__all__ = ["ResNet", "qresnet14", "qresnet20", "resnet14", "resnet20", "resnet32"]

_STAGES = (16, 32, 64)


class _Residual(nn.Module):
    """Two units and a way round them."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: Kind) -> None:
        super().__init__()
        self.first = unit(inputs, outputs, 3, kind, stride=stride, activation=nn.ReLU())
        self.second = unit(outputs, outputs, 3, kind)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else unit(inputs, outputs, 1, Kind(), stride=stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return y


class ResNet(nn.Module):
    """6n + 2 layers in three stages of n residual units, then a linear classifier.

    Args:
        depth: 6n + 2.
        classes: number of outputs.
        channels: of the images.
        scale: factor of every width.
        form: of the quadratic neurons; ``None`` for first-order convolutions. Ways round that
            change the shape are first-order in any case.
        batch_norm: of quadratic blocks.

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
        form: str | None = None,
        batch_norm: str = "both",
    ) -> None:
        super().__init__()
        units, rest = divmod(depth - 2, 6)
        if units < 1 or rest or classes < 1 or channels < 1:
            raise ConfigurationError(
                f"ResNet: depth must be 6n + 2 with n at least 1, and classes and channels "
                f"positive, got {depth}, {classes} and {channels}."
            )
        kind = Kind(form, batch_norm)
        inputs = width(_STAGES[0], scale)
        self.stem = unit(channels, inputs, 3, kind, activation=nn.ReLU())
        stages: list[nn.Module] = []
        for number, stage in enumerate(_STAGES):
            outputs = width(stage, scale)
            for at in range(units):
                stride = 2 if number and not at else 1
                stages.append(_Residual(inputs, outputs, stride, kind))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to [batch, classes]."""
        y: Tensor = self.classifier(self.stages(self.stem(x)).mean((2, 3)))
        return y


def resnet14(classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> ResNet:
    """Build QResNet-14's first-order counterpart, 0.18 M parameters."""
    return ResNet(14, classes, channels=channels, scale=scale)


def resnet20(classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> ResNet:
    """Build ResNet-20, 0.27 M parameters."""
    return ResNet(20, classes, channels=channels, scale=scale)


def resnet32(classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> ResNet:
    """Build ResNet-32, 0.47 M parameters."""
    return ResNet(32, classes, channels=channels, scale=scale)


def qresnet14(
    classes: int = 10,
    *,
    channels: int = 3,
    scale: float = 1.0,
    form: str = "Quadra",
    batch_norm: str = "both",
) -> ResNet:
    """Build QResNet-14, 0.52 M parameters at full width as ``Quadra``."""
    return ResNet(14, classes, channels=channels, scale=scale, form=form, batch_norm=batch_norm)


def qresnet20(
    classes: int = 10,
    *,
    channels: int = 3,
    scale: float = 1.0,
    form: str = "Quadra",
    batch_norm: str = "both",
) -> ResNet:
    """Build QResNet-20, 0.81 M parameters at full width as ``Quadra``."""
    return ResNet(20, classes, channels=channels, scale=scale, form=form, batch_norm=batch_norm)
