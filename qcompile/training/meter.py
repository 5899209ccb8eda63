"""The running figures of a run: speed, loss, an estimate of P@1, and what is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from scipy import sparse
from torch import Tensor

from qcompile.training.observers import Snapshot

__all__ = ["Meter"]

_DECAY = 0.99
_ESTIMATE_EXAMPLES = 32
_ESTIMATE_EVERY = 2.0  # seconds
_ESTIMATE_SHARE = 0.01  # of the time that estimates may take
_REPORT_EVERY = 0.2  # seconds
_SPEED_DECAY = 0.9  # a report


class Meter:
    """Measures training, without the evaluations and checkpoints between its steps.

    Args:
        steps: of the whole run.
        epochs: of the whole run.
        batches: steps of an epoch.
        seconds: of training before, in a resumed run.
    """

    def __init__(self, steps: int, epochs: int, batches: int, seconds: float = 0.0) -> None:
        self._steps, self._epochs, self._batches = steps, epochs, batches
        self._before, self._since = seconds, time.perf_counter()
        self._running = False
        self._loss: float | None = None
        self._precision: float | None = None
        self._speed: float | None = None
        self._counted = 0
        self._reported = self._estimated = 0.0
        self._pause = _ESTIMATE_EVERY

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._before + (time.perf_counter() - self._since if self._running else 0.0)

    @property
    def precision(self) -> float | None:
        """The running estimate of P@1."""
        return self._precision

    def seconds_a_step(self, steps: int) -> float:
        """Return how long one of so many steps took on average."""
        return self.seconds / max(steps, 1)

    def start(self) -> None:
        """Begin or go on."""
        self._since, self._running = time.perf_counter(), True
        self._reported, self._counted = self.seconds, 0

    def stop(self) -> None:
        """Leave out what happens until the next start."""
        self._before, self._running = self.seconds, False

    def estimate(
        self,
        features: sparse.csr_matrix,
        labels: Tensor,
        answer: Callable[[sparse.csr_matrix], Tensor],
    ) -> None:
        """Measure P@1 on part of a batch, if it has not been for a while.

        Args:
            features: CSR [B, F].
            labels: int64 [B, T].
            answer: returns the best label of each example.
        """
        begin = self.seconds
        if begin - self._estimated < self._pause:
            return
        count = min(_ESTIMATE_EXAMPLES, len(labels))
        right = (labels[:count] == answer(features[:count])[:, None]).any(dim=1)
        value = float(right.double().mean())
        old = self._precision
        self._precision = value if old is None else 0.8 * old + 0.2 * value
        self._estimated = self.seconds
        self._pause = max(_ESTIMATE_EVERY, (self._estimated - begin) / _ESTIMATE_SHARE)

    def count(self, loss: float, examples: int) -> None:
        """Count one step."""
        self._loss = loss if self._loss is None else _DECAY * self._loss + (1 - _DECAY) * loss
        self._counted += examples

    def report(self, step: int, rate: float) -> Snapshot | None:
        """Return where the run is, or None if it was told a moment ago."""
        now = self.seconds
        passed = now - self._reported
        last = step == self._steps
        if (passed < _REPORT_EVERY and not last) or passed <= 0 or self._loss is None:
            return None
        speed, old = self._counted / passed, self._speed
        self._speed = speed if old is None else _SPEED_DECAY * old + (1 - _SPEED_DECAY) * speed
        self._reported, self._counted = now, 0
        return Snapshot(
            step=step,
            steps=self._steps,
            epoch=min(-(-step // self._batches), self._epochs),
            epochs=self._epochs,
            loss=self._loss,
            precision=self._precision,
            examples_per_second=self._speed,
            rate=rate,
            remaining=now / step * (self._steps - step),
        )
