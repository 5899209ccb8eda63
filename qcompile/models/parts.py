"""What networks are made of: a convolution with batch norm and activation, of either kind."""

from __future__ import annotations

from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.nn import QuadraticBlock, QuadraticConv2d

__all__ = ["Kind", "unit", "width"]


class Kind:
    """What convolutions a network has.

    Args:
        form: of the quadratic neurons; ``None`` for first-order convolutions.
        batch_norm: of quadratic blocks: ``branch``, ``outer``, ``both`` or ``none``.
    """

    def __init__(self, form: str | None = None, batch_norm: str = "both") -> None:
        self.form, self.batch_norm = form, batch_norm


def width(channels: int, scale: float) -> int:
    """Return a scaled number of channels, at least 1.

    Raises:
        ConfigurationError: ``scale`` is not positive.
    """
    if not scale > 0:
        raise ConfigurationError(f"models: scale must be positive, got {scale!r}.")
    return max(1, round(channels * scale))


def unit(
    inputs: int,
    outputs: int,
    kernel_size: int,
    kind: Kind,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Module:
    """Return a convolution with margins that keep the size, a batch norm and an activation."""
    options = {"stride": stride, "padding": kernel_size // 2, "groups": groups, "bias": False}
    if kind.form is not None:
        layer = QuadraticConv2d(inputs, outputs, kernel_size, form=kind.form, **options)
        return QuadraticBlock(layer, kind.batch_norm, activation)
    convolution = nn.Conv2d(inputs, outputs, kernel_size, **options)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    parts = [convolution, nn.BatchNorm2d(outputs), activation]
    return nn.Sequential(*(part for part in parts if part is not None))
