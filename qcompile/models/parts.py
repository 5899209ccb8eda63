"""What networks are made of: convolutions with batch norm and activation, and a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qcompile.errors import ConfigurationError
from qcompile.nn import QuadraticBlock, QuadraticConv2d

__all__ = ["FIRST_ORDER", "Classifier", "Kind", "at_least_one", "unit", "width"]


@dataclass(frozen=True)
class Kind:
    """What convolutions a network has.

    Args:
        form: of the quadratic neurons; ``None`` for first-order convolutions.
        batch_norm: of quadratic blocks: ``branch``, ``outer``, ``both`` or ``none``.
        memory: level of quadratic blocks: 0, 1 or 3.
    """

    form: str | None = None
    batch_norm: str = "both"
    memory: int = 0


FIRST_ORDER = Kind()


class Classifier(nn.Module):
    """Features of an image, averaged over its positions, and a linear layer for the classes.

    Args:
        features: [batch, channels, H, W] → [batch, width, H', W'].
        width: channels of the features.
        classes: number of outputs.

    Shape:
        [batch, channels, height, width] → [batch, classes].

    Raises:
        ConfigurationError: ``classes`` is not positive.
    """

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        at_least_one(type(self).__name__, classes=classes)
        self.features = features
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to scores."""
        y: Tensor = self.classifier(self.embed(x))
        return y

    def embed(self, x: Tensor) -> Tensor:
        """Map images to what the classifier sees of them, [batch, width]."""
        y: Tensor = self.features(x).mean((2, 3))
        return y


def at_least_one(where: str, **sizes: int) -> None:
    """Raise ConfigurationError for a size below 1."""
    for what, size in sizes.items():
        if size < 1:
            raise ConfigurationError(f"{where}: {what} must be at least 1, got {size!r}.")


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
    pool: nn.Module | None = None,
) -> nn.Module:
    """Return a convolution with margins that keep the size, its batch norm and what follows.

    A quadratic one with branch norms begins as the first-order neuron that its form contains: the
    norms of its quadratic terms scale by zero. With scales of one a product of normalised branches
    has heavy tails, and deep networks of them learn very slowly; a test compares the two.
    """
    options: dict[str, Any] = {
        "stride": stride,
        "padding": kernel_size // 2,
        "groups": groups,
        "bias": False,
    }
    if kind.form is not None:
        layer = QuadraticConv2d(inputs, outputs, kernel_size, form=kind.form, **options)
        block = QuadraticBlock(layer, kind.batch_norm, activation, pool, memory=kind.memory)
        _begin_first_order(block)
        return block
    convolution = nn.Conv2d(inputs, outputs, kernel_size, **options)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    parts = [convolution, nn.BatchNorm2d(outputs), activation, pool]
    return nn.Sequential(*(part for part in parts if part is not None))


def _begin_first_order(block: QuadraticBlock) -> None:
    formula = block.layer.formula
    for letter, norm in block.branch_norms.items():
        if letter in formula.zeroed:
            nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
            nn.init.constant_(norm.bias, float(letter in formula.ones))  # type: ignore[arg-type]
