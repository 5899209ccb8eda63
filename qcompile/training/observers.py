"""Who watches a run: progress bar, log lines, TensorBoard. A run without any is silent."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import QCompileWarning
from qcompile.training.event_file import EventFile

__all__ = ["LogLines", "Observer", "ProgressBar", "Snapshot", "TensorBoard"]

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_SCALARS = 1.0
_SHOWN = ("P@", "PSP@")  # figures of an evaluation that fit into a line


@dataclass(frozen=True)
class Snapshot:
    """Where a run is.

    Args:
        step: steps taken.
        steps: steps of the whole run.
        epoch: of the last step, counted from 1.
        epochs: of the whole run.
        loss: exponential mean over about a hundred steps.
        precision: exponential mean of P@1, measured now and then on 32 examples of a batch, all
            outputs scored, before the batch is trained on; None while there is none.
        examples_per_second: over the last few seconds of training.
        rate: learning rate.
        remaining: seconds of training left at this speed.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    precision: float | None
    examples_per_second: float
    rate: float
    remaining: float

    def __str__(self) -> str:
        """Say it in one line."""
        precision = "" if self.precision is None else f"  P@1 ~{self.precision:.3f}"
        return (
            f"epoch {self.epoch}/{self.epochs}  step {self.step:,}/{self.steps:,}  "
            f"{self.examples_per_second:,.0f} examples/s  loss {self.loss:.4f}{precision}  "
            f"{_clock(self.remaining)} left"
        )


class Observer:
    """Is told what happens in a run; does nothing by itself."""

    def stepped(self, snapshot: Snapshot) -> None:
        """Hear of a step, a few times a second at most."""

    def evaluated(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Hear the figures of an evaluation."""

    def noted(self, text: str) -> None:
        """Hear of something else: a checkpoint, a warning."""

    def closed(self) -> None:
        """Hear that the run has ended, in whichever way."""


class LogLines(Observer):
    """A plain line every ten seconds, for output that is no terminal.

    Args:
        console: a rich console.
    """

    def __init__(self, console: Any) -> None:
        self._console = console
        self._last = time.monotonic()

    def stepped(self, snapshot: Snapshot) -> None:  # noqa: D102
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or snapshot.step == snapshot.steps:
            self._last = now
            self._print(str(snapshot))

    def evaluated(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: D102
        shown = [(name, value) for name, value in metrics.items() if name.startswith(_SHOWN)]
        self._print(f"epoch {epoch}: " + "  ".join(f"{name} {value:.4f}" for name, value in shown))

    def noted(self, text: str) -> None:  # noqa: D102
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


class ProgressBar(LogLines):
    """A bar that moves, for a terminal; evaluations and notes stay above it.

    Args:
        console: a rich console.
    """

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(console)
        columns = BarColumn(bar_width=20), TextColumn("{task.description}", markup=False)
        self._bar = Progress(*columns, console=console, auto_refresh=False)
        self._task = self._bar.add_task("", total=None)

    def stepped(self, snapshot: Snapshot) -> None:  # noqa: D102
        self._bar.start()  # the first time; a run that never gets here draws nothing
        self._bar.update(
            self._task,
            description=str(snapshot),
            total=snapshot.steps,
            completed=snapshot.step,
            refresh=True,
        )

    def closed(self) -> None:  # noqa: D102
        self._bar.stop()


class TensorBoard(Observer):
    """Event files for TensorBoard. Where one can no longer be written, a warning says so.

    Args:
        folder: where they go.

    Raises:
        ConfigurationError: tensorboard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file = EventFile(folder)
        self._last = 0.0
        self._fails = False

    def stepped(self, snapshot: Snapshot) -> None:  # noqa: D102
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_SCALARS and snapshot.step != snapshot.steps:
            return
        self._last = now
        scalars = {
            "train/loss": snapshot.loss,
            "train/P@1": snapshot.precision,
            "train/examples per second": snapshot.examples_per_second,
            "train/learning rate": snapshot.rate,
        }
        known = {name: value for name, value in scalars.items() if value is not None}
        self._report(known, snapshot.step)

    def evaluated(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: D102
        self._report({f"test/{name}": value for name, value in metrics.items()}, step)

    def _report(self, scalars: Mapping[str, float], step: int) -> None:
        """Write figures; where that fails, training matters more: say so once, and go on."""
        try:
            self._file.report(scalars, step)
            self._fails = False
        except OSError as error:
            if not self._fails:
                warnings.warn(
                    f"{self._file.path}: cannot be written: {error.strerror}. Training goes on; "
                    f"TensorBoard's figures are missing from step {step:,} until they can be "
                    "written again.",
                    QCompileWarning,
                    stacklevel=2,
                )
            self._fails = True


def _clock(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
