"""What networks are made of: a convolution with batch norm and activation, of either kind."""

from __future__ import annotations

from typing import Any

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
    """Return a convolution with margins that keep the size, a batch norm and an activation.

    A quadratic one with branch norms begins as the first-order neuron that its form contains: the
    norms of its quadratic terms scale by zero. Such networks learn at once; with scales of one a
    product of normalised branches has heavy tails, and on scikit-learn's digits a QResNet-14 has
    learnt hardly anything after five epochs (accuracy .24, not .98).
    """
    options: dict[str, Any] = {
        "stride": stride,
        "padding": kernel_size // 2,
        "groups": groups,
        "bias": False,
    }
    if kind.form is not None:
        layer = QuadraticConv2d(inputs, outputs, kernel_size, form=kind.form, **options)
        block = QuadraticBlock(layer, kind.batch_norm, activation)
        _begin_first_order(block)
        return block
    convolution = nn.Conv2d(inputs, outputs, kernel_size, **options)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    parts = [convolution, nn.BatchNorm2d(outputs), activation]
    return nn.Sequential(*(part for part in parts if part is not None))


def _begin_first_order(block: QuadraticBlock) -> None:
    formula = block.layer.formula
    for letter, norm in block.branch_norms.items():
        if letter in formula.zeroed:
            nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
            nn.init.constant_(norm.bias, float(letter in formula.ones))  # type: ignore[arg-type]
