"""What a run hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.training.config import TrainConfig
from qcompile.training.model import ExtremeClassifier

__all__ = ["Epoch", "TrainResult"]


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch.

    Args:
        epoch: its number, counted from 1.
        step: steps taken by its end.
        seconds: of training by its end, evaluations and checkpoints left out.
        loss: mean over its examples, of the loss before each step.
        metrics: of the test data at its end; empty where it was not evaluated.
    """

    epoch: int
    step: int
    seconds: float
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainResult:
    """A trained network and the figures of its training.

    Args:
        model: in evaluation mode, every row up to date.
        config: as given.
        steps: taken.
        seconds: of training, evaluations and checkpoints left out, earlier sessions included.
        examples_per_second: over all of it.
        skipped: training rows without labels.
        history: of each epoch.
        peak_memory: bytes that this process has held at most.
        checkpoint: the newest one, where checkpoints are kept.
        interrupted: the signal that ended the run early, or None.
        tables: occupancy and cost of the hash tables, see ``LSHLinear.occupancy``; empty where
            there are none.
        ranks: processes that have trained it.
        bytes_sent: payload bytes that the first rank has sent in this session, by kind of
            collective, evaluations and checkpoints included.
        bytes_per_step: those of a training step, on average.
    """

    model: ExtremeClassifier
    config: TrainConfig
    steps: int
    seconds: float
    examples_per_second: float
    skipped: int
    history: list[Epoch]
    peak_memory: int
    checkpoint: Path | None = None
    interrupted: int | None = None
    tables: dict[str, Any] = field(default_factory=dict)
    ranks: int = 1
    bytes_sent: dict[str, int] = field(default_factory=dict)
    bytes_per_step: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of the last evaluation."""
        return next((epoch.metrics for epoch in reversed(self.history) if epoch.metrics), {})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the model."""
        return {
            "config": self.config.to_dict(),
            "features": self.model.num_features,
            "labels": self.model.num_labels,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps": self.steps,
            "seconds": self.seconds,
            "examples_per_second": self.examples_per_second,
            "skipped_rows": self.skipped,
            "metrics": self.metrics,
            "history": [vars(epoch) for epoch in self.history],
            "peak_memory_bytes": self.peak_memory,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "interrupted": self.interrupted,
            "tables": self.tables,
            "ranks": self.ranks,
            "bytes_sent": self.bytes_sent,
            "bytes_per_step": self.bytes_per_step,
        }
