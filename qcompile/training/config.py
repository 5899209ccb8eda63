"""What a training run is asked to do: one frozen dataclass, checked when made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qcompile.config import LSH, canonical_form, choose
from qcompile.errors import ConfigurationError

__all__ = [
    "BUILT_IN",
    "FREE",
    "OPTIMIZERS",
    "SCHEDULES",
    "STORAGES",
    "TrainConfig",
    "remaining_rate",
]

OPTIMIZERS = ("adam", "sparse-adam", "adamw", "sgd")
STORAGES = ("fp32", "bf16")
SCHEDULES = ("linear", "constant")

BUILT_IN = ("codespell", "geonames")
"""Data sets that come with test data of their own; a file of such a name needs a ``./``."""

FREE = frozenset({"threads", "evaluate_every", "checkpoint_minutes", "top_k", "recall"})
"""Fields that a resumed run may change: they do not move the weights."""

_LEAST = {
    "epochs": 1,
    "batch": 1,
    "threads": 0,
    "seed": 0,
    "evaluate_every": 0,
    "save_point_steps": 1,
    "top_k": 1,
}


@dataclass(frozen=True)
class TrainConfig:
    """A network, its optimiser and their schedule.

    Args:
        hidden: widths of the hidden layers, the first of which reads the sparse features.
        quadratic: form of quadratic neuron of all hidden layers, one of
            :data:`qcompile.config.FORMS`; ``None`` for first-order neurons.
        sparse_output: the output layer: mode, hash family, tables, sampling.
        storage: of the first and the output layer's weights and moments, ``fp32`` or ``bf16``.
        optimizer: ``adam``, ``sparse-adam``, ``adamw`` or ``sgd``, those of :mod:`qcompile.optim`.
        lr: learning rate at the first step.
        input_lr: that of the first layer, which reads the sparse features; ``None`` is ``lr``.
        schedule: ``linear`` lowers the rates to a hundredth over the whole run; ``constant`` keeps
            them.
        weight_decay: as the optimiser defines it.
        epochs: passes over the training data.
        batch: examples of a step; of all ranks together where there are several.
        threads: of the C++ core and torch; 0 leaves torch's own number.
        seed: fixes initial weights, the order of the examples and sampling.
        evaluate_every: epochs between two evaluations; 0 evaluates at the end only.
        checkpoint_minutes: minutes between two checkpoints within an epoch; 0 keeps those of
            epoch ends only.
        save_point_steps: steps between two points at which a checkpoint may be written, see
            :mod:`qcompile.training.trainer`.
        top_k: answers that the exported model hands out.
        recall: share of them that it has to find, shown on the test data; ``None`` for all.

    Raises:
        ConfigurationError: a value is unknown or out of range.
    """

    hidden: tuple[int, ...] = (128,)
    quadratic: str | None = None
    sparse_output: LSH = field(default_factory=LSH)
    storage: str = "fp32"
    optimizer: str = "adam"
    lr: float = 4e-3
    input_lr: float | None = None
    schedule: str = "linear"
    weight_decay: float = 0.0
    epochs: int = 5
    batch: int = 256
    threads: int = 0
    seed: int = 0
    evaluate_every: int = 1
    checkpoint_minutes: float = 10.0
    save_point_steps: int = 1000
    top_k: int = 5
    recall: float | None = None

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, OPTIMIZERS)
        choose("storage", self.storage, STORAGES)
        choose("schedule", self.schedule, SCHEDULES)
        if self.optimizer == "sparse-adam" and self.weight_decay:
            raise ConfigurationError(
                "training: sparse-adam leaves idle rows as they are and has no weight decay, got "
                f"weight_decay={self.weight_decay!r}; adamw decays them, too."
            )
        if self.quadratic is not None:
            object.__setattr__(self, "quadratic", canonical_form(self.quadratic))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not self.hidden:
            raise ConfigurationError("training: hidden must name the width of at least one layer.")
        for width in self.hidden:
            _at_least("hidden", width, 1)
        for name, least in _LEAST.items():
            _at_least(name, getattr(self, name), least)
        for name in ("lr", "input_lr", "weight_decay", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is None and name == "input_lr":
                continue
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ConfigurationError(
                    f"training: {name} must be a finite number of at least 0, got {value!r}."
                )
        if self.recall is not None and not (
            isinstance(self.recall, int | float) and 0 < self.recall <= 1
        ):
            raise ConfigurationError(
                f"training: recall must be above 0 and at most 1, got {self.recall!r}."
            )
        if self.lr == 0 or self.seed >= 2**63:
            raise ConfigurationError(
                f"training: lr must be positive and seed below 2^63, got {self.lr!r} and "
                f"{self.seed!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; :meth:`from_dict` takes them back."""
        values = dataclasses.asdict(dataclasses.replace(self, sparse_output=self._plain_output()))
        del values["sparse_output"]["where"]
        return {**values, "hidden": list(self.hidden)}

    def _plain_output(self) -> LSH:
        return dataclasses.replace(self.sparse_output, where=None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Make a configuration of what :meth:`to_dict` returned.

        Raises:
            ConfigurationError: a name is unknown, or a value is out of range.
        """
        values = dict(values)
        try:
            output = LSH(**values.pop("sparse_output"))
            return cls(sparse_output=output, **values)
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"training: this is no configuration of this release: {error}."
            ) from error

    def differences(self, other: TrainConfig) -> list[str]:
        """Say in words which values that move the weights differ from those of ``other``."""
        mine, others = _flat(self.to_dict()), _flat(other.to_dict())
        return [
            f"{name} is {mine[name]!r}, was {others[name]!r}"
            for name in mine
            if name not in FREE and mine[name] != others[name]
        ]


def remaining_rate(schedule: str, step: int, steps: int) -> float:
    """Return the share of the first learning rate that step ``step`` of ``steps`` has, from 0."""
    return 1.0 if schedule == "constant" else 1 - 0.99 * min(step, steps) / max(steps, 1)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    output = values["sparse_output"]
    plain = {name: value for name, value in values.items() if name != "sparse_output"}
    return {**plain, **{f"sparse_output.{name}": value for name, value in output.items()}}


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"training: {name} must be an integer of at least {least}, got {value!r}."
        )
