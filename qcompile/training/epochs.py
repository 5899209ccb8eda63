"""Training in epochs: a bar, figures and a checkpoint after each, from which it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.optim import Optimizer

from qcompile.errors import CheckpointError, ConfigurationError
from qcompile.training import checkpoint
from qcompile.training.state_tree import give, take

__all__ = ["Epochs", "Told", "progress_bar"]

Told = Callable[[float], None]
"""Is called after each step with its loss."""


class Epochs:
    """The epochs of one training, and the checkpoint after each.

    Every epoch seeds torch's generator by its number, so that a training which was stopped goes on
    to the same bits.

    Args:
        name: of what is trained.
        folder: gets a folder of this name with the newest two checkpoints; what is there is gone
            on from.
        parts: all that changes in training, by name: networks, optimisers, schedules, averages.
        settings: plain JSON values; a checkpoint of other settings is refused.
        count: number of epochs.

    Attributes:
        curve: figures of each finished epoch.

    Raises:
        ConfigurationError: ``count`` is not positive.
        CheckpointError: the checkpoint is of other settings, of another network or damaged.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
        count: int,
    ) -> None:
        if count < 1:
            raise ConfigurationError(f"{name}: epochs must be at least 1, got {count}.")
        self.name, self.folder, self.count = name, folder / name, count
        self.settings = {**settings, "epochs": count}
        self.curve: list[dict[str, float]] = []
        self._parts = dict(parts)
        if self._has_begun():
            self._restore()

    def run(
        self, epoch: Callable[[Told], Mapping[str, float]], steps: int, bar: Progress | None = None
    ) -> None:
        """Run the epochs that are left.

        Args:
            epoch: trains one and returns its figures.
            steps: of an epoch.
            bar: shows them.

        Raises:
            CheckpointError: a checkpoint cannot be written.
        """
        shown = bar or Progress(disable=True)
        done = len(self.curve)
        task = shown.add_task(self.name, total=self.count * steps, completed=done * steps)

        def told(loss: float) -> None:
            shown.update(task, advance=1, description=f"{self.name} loss {loss:.3f}")

        for number in range(done, self.count):
            torch.manual_seed(number)
            self.curve.append(dict(epoch(told)))
            self._save()
            if bar is not None:
                bar.console.print(f"{self.name}, epoch {number + 1}: {self._last()}", markup=False)

    def _last(self) -> str:
        """Say the figures of the last epoch."""
        return ", ".join(f"{what} {value:.4g}" for what, value in self.curve[-1].items())

    def _save(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        state = {
            "settings": self.settings,
            "curve": self.curve,
            "parts": {n: take(n, part.state_dict(), tensors) for n, part in self._parts.items()},
        }
        checkpoint.save(self.folder, len(self.curve), tensors, state)
        checkpoint.prune(self.folder)

    def _has_begun(self) -> bool:
        """Whether there is a whole checkpoint; a first one that was cut off does not count."""
        try:
            checkpoint.find(self.folder)
        except CheckpointError:
            return False
        return True

    def _restore(self) -> None:
        saved = checkpoint.load(self.folder)
        before = saved.state.get("settings")
        if before != self.settings:
            raise CheckpointError(
                f"{self.folder} is of another run ({before}, now {self.settings}); name another "
                "folder, or remove it."
            )
        try:
            for name, part in self._parts.items():
                state = give(saved.state["parts"][name], saved.tensors)
                if isinstance(part, Optimizer):
                    state["state"] = {int(number): kept for number, kept in state["state"].items()}
                part.load_state_dict(state)
            self.curve = list(saved.state["curve"])
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{saved.path}: is not of this network: {error}") from error


def progress_bar() -> Progress:
    """Return a bar on stderr for any number of trainings: what it does, and the time left."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))
