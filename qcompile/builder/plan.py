"""What a search is asked to do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from qcompile.config import canonical_form
from qcompile.errors import ConfigurationError

__all__ = ["BuildConfig"]


@dataclass(frozen=True)
class BuildConfig:
    """Settings of :func:`qcompile.autobuild`.

    Args:
        quadratic: form of the neurons that replace first-order ones.
        parameters: budget: share of the first-order network's parameters, or a number above 1 of
            them; ``None`` for no limit.
        flops: budget of operations of one example, likewise.
        tolerance: how far below the trained quadratic network's metric a step may lead.
        epochs: of training after the replacement, and again at the end.
        tune_epochs: of training after each step.
        batch: examples of a training step.
        lr: learning rate; quadratic terms have ``scale`` times as much.
        scale: see :func:`qcompile.optim.quadratic_groups`.
        weight_decay: of all parameters.
        clip: largest norm of the gradients.
        seed: of order, initial weights and everything random.

    Raises:
        ConfigurationError: a value is out of range.
    """

    quadratic: str = "Quadra"
    parameters: float | None = None
    flops: float | None = None
    tolerance: float = 0.01
    epochs: int = 5
    tune_epochs: int = 1
    batch: int = 64
    lr: float = 0.05
    scale: float = 0.3
    weight_decay: float = 5e-4
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "quadratic", canonical_form(self.quadratic))
        for name, least in (("epochs", 1), ("tune_epochs", 0), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"autobuild: {name} must be an integer of at least {least}, got {value!r}."
                )
        for name in ("tolerance", "scale", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigurationError(
                    f"autobuild: {name} must be a finite number of at least 0, got {value!r}."
                )
        for name in ("lr", "clip", "parameters", "flops"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"autobuild: {name} must be positive, got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)
