"""The training loop.

**Resuming bit for bit.** Between two steps a run is more than its weights: rows lag behind by the
momentum of idle steps, and hash tables are those of earlier weights. Neither is saved. Instead a
run that keeps checkpoints has *save points*: every ``save_point_steps`` steps and at the end of
every epoch all rows catch up and the tables become due, whether or not a checkpoint is written
there. Checkpoints are written at save points alone, so that writing one changes nothing: a
resumed run, a run with other intervals between checkpoints and one that was never interrupted end
with the same bits (with ``accumulation="deterministic"``). A run that is asked to end goes on to
the next save point if that is seconds away.
"""

from __future__ import annotations

import math
import resource
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy import sparse
from torch import Tensor

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.distributed import Group, agree, check_replicas, sum_gradients
from qcompile.errors import CheckpointError, DataError, QCompileWarning, TrainingError
from qcompile.training.batches import Batches
from qcompile.training.build import build_model, build_optimizer
from qcompile.training.config import TrainConfig, remaining_rate
from qcompile.training.evaluation import Evaluator
from qcompile.training.fingerprint import fingerprint
from qcompile.training.interrupt import Interrupt
from qcompile.training.meter import Meter
from qcompile.training.observers import Observer
from qcompile.training.result import Epoch, TrainResult
from qcompile.training.saving import Saver, State, refuse_other_runs
from qcompile.training.scoring import likeliest

__all__ = ["Trainer"]

_PATIENCE = 10.0  # seconds that a run which was asked to end may take to reach a save point


class Trainer:
    """One run.

    Args:
        config: network, optimiser, schedule.
        train: the examples.
        test: what is evaluated; ``None`` evaluates nothing.
        folder: where checkpoints are kept; ``None`` keeps none, and makes no save points.
        resume: go on from the newest checkpoint in ``folder``.
        observers: who watches; only those of the first rank are told.
        group: the ranks; alone by default.

    Raises:
        ConfigurationError: the configuration does not fit the data.
        DataError: there is nothing to learn.
        CheckpointError: ``folder`` holds checkpoints and ``resume`` is not set, or it is and they
            are of another configuration or other data.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: SparseDataset,
        test: SparseDataset | None = None,
        *,
        folder: Path | None = None,
        resume: bool = False,
        observers: Iterable[Observer] = (),
        group: Group | None = None,
    ) -> None:
        if folder is not None and not resume:
            refuse_other_runs(folder)
        self.config = config
        self._group = group or Group()
        agree(self._group, {"configuration": config.to_dict(), "training data": fingerprint(train)})
        self._observers = tuple(observers) if self._group.rank == 0 else ()
        self._batches = Batches(
            train, config.batch, config.seed, self._group.rank, self._group.size
        )
        self.model = build_model(config, train, self._group)
        self._optimizer = build_optimizer(config, self.model)
        self._evaluator = None if test is None else Evaluator(train, test, self._group)
        self._rates = [settings["lr"] for settings in self._optimizer.param_groups]
        self._steps = config.epochs * self._batches.per_epoch
        self._state = State()
        self._told = False  # that a signal came
        self._sent = self._taken = 0  # bytes of the training steps of this session
        self._saver = None if folder is None else Saver(folder, config, train, self._group)
        if self._saver is not None and resume:
            self._state = self._saver.restore(self.model, self._optimizer)
        self._meter = Meter(
            self._steps, config.epochs, self._batches.per_epoch, self._state.seconds
        )

    def run(self) -> TrainResult:
        """Train until the last epoch ends or a signal asks to stop.

        Raises:
            TrainingError: the loss is no longer a number.
            CheckpointError: the last checkpoint cannot be written.
            DistributedError: another rank has left, or has other weights.
            KeyboardInterrupt: a second signal came.
        """
        with _threads(self.config.threads), Interrupt(patient=self._group.size > 1) as interrupt:
            try:
                while self._state.epoch < self.config.epochs and not self._asked(interrupt):
                    if not self._train_epoch(interrupt):
                        break
                    self._end_epoch()
                signal = self._asked(interrupt)
                self.model.eval()
                check_replicas(self.model, self._group)
                self._save(last=True)
            finally:
                for observer in self._observers:
                    observer.closed()
        return self._result(signal)

    def _train_epoch(self, interrupt: Interrupt) -> bool:
        """Train on what is left of the epoch; tell whether its end was reached."""
        state = self._state
        self.model.train()
        self._meter.start()
        try:
            for features, labels in self._batches.epoch(state.epoch, state.position):
                self._step(features, labels)
                state.position += 1
                state.step += 1
                if state.position < self._batches.per_epoch and self._stops_here(interrupt):
                    return False
        finally:
            self._meter.stop()
            state.seconds = self._meter.seconds
        return True

    def _step(self, features: sparse.csr_matrix, labels: Tensor) -> None:
        left = remaining_rate(self.config.schedule, self._state.step, self._steps)
        for settings, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            settings["lr"] = rate * left
        if self._observers and self._group.size == 1:
            self._meter.estimate(features, labels, self._answer)
        sent = self._group.bytes_sent
        loss = self.model(features, labels).loss
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(self._divergence(value))
        self._optimizer.zero_grad()
        loss.backward()
        sum_gradients(self.model, self._group)
        self._optimizer.step()
        self._sent += self._group.bytes_sent - sent
        self._taken += 1
        self._state.loss_sum += value * len(labels)
        self._state.examples += len(labels)
        self._meter.count(value, len(labels) * self._group.size)
        if not self._observers:
            return
        snapshot = self._meter.report(self._state.step + 1, self.config.lr * left)
        if snapshot is not None:
            for observer in self._observers:
                observer.stepped(snapshot)

    def _answer(self, features: sparse.csr_matrix) -> Tensor:
        return likeliest(self.model, features)

    def _divergence(self, value: float) -> str:
        newest = None if self._saver is None else self._saver.newest
        kept = "" if newest is None else f" The last checkpoint is {newest}."
        rate = self.config.input_lr
        first = "" if rate is None else f", or a lower --input-lr than {rate:g}"
        return (
            f"training: the loss is {value} at step {self._state.step + 1:,}, the run has "
            f"diverged; begin afresh with a lower --lr than {self.config.lr:g}{first}.{kept}"
        )

    def _asked(self, interrupt: Interrupt) -> int | None:
        """Return the signal by which some rank was asked to end; a collective."""
        return max(row[0] for row in self._group.table(interrupt.signal or 0)) or None

    def _stops_here(self, interrupt: Interrupt) -> bool:
        """Make a save point if one is due at this step; tell whether to stop."""
        # Ranks must stop at the same step: they learn of a signal together, in the next one.
        self._group.flag = bool(interrupt)
        point = self.config.save_point_steps
        left = -self._state.step % point
        if left:
            asked = bool(interrupt) if self._group.size == 1 else self._group.flagged
            return asked and not self._waits(left)
        due = self._saver is not None and self._saver.due(self.config.checkpoint_minutes)
        stop = self._asked(interrupt) is not None
        due = bool(self._group.table(int(due))[0][0])
        if self._saver is not None:
            self._settle()
            if due and not stop:
                self._meter.stop()
                self._save()
                self._meter.start()
        return stop

    def _waits(self, steps: int) -> bool:
        """Whether a run that was asked to end goes on to the next save point, and say so."""
        if self._saver is None:
            return False
        near = steps * self._meter.seconds_a_step(self._state.step) <= _PATIENCE
        near = bool(self._group.table(int(near))[0][0])
        if not near:
            self._note("ending between two save points: resumed, this run may differ in rounding")
        elif not self._told:
            self._note(f"ending in {steps:,} steps, at a save point; a second signal ends at once")
            self._told = True
        return near

    def _note(self, text: str) -> None:
        for observer in self._observers:
            observer.noted(text)

    def _settle(self) -> None:
        """Let all rows catch up and make the tables due, as taking their states does."""
        self.model.state_dict()
        self._optimizer.state_dict()

    def _end_epoch(self) -> None:
        state = self._state
        if self._saver is not None:
            self._settle()
        state.epoch, state.position = state.epoch + 1, 0
        metrics: dict[str, float] = {}
        if self._evaluator is not None and self._evaluates(state.epoch):
            metrics = self._evaluator(self.model)
            for observer in self._observers:
                observer.evaluated(state.step, state.epoch, metrics)
        loss = state.loss_sum / state.examples
        state.history.append(Epoch(state.epoch, state.step, state.seconds, loss, metrics))
        state.loss_sum, state.examples = 0.0, 0
        self._save()

    def _evaluates(self, epoch: int) -> bool:
        every = self.config.evaluate_every
        return epoch == self.config.epochs or (every > 0 and epoch % every == 0)

    def _save(self, last: bool = False) -> None:
        if self._saver is None:
            return
        self._settle()
        self._state.seconds = self._meter.seconds
        try:
            self._saver.save(self.model, self._optimizer, self._state)
        except CheckpointError as error:
            if last:
                raise
            # As a warning, it reaches who watches no figures, too.
            warnings.warn(f"not saved, training goes on: {error}", QCompileWarning, stacklevel=2)

    def _result(self, interrupted: int | None) -> TrainResult:
        state = self._state
        trained = state.step * self.config.batch  # the last batch of an epoch may be smaller
        if state.position == 0:
            trained = state.epoch * self._batches.examples
        return TrainResult(
            model=self.model,
            config=self.config,
            steps=state.step,
            seconds=state.seconds,
            examples_per_second=trained / state.seconds if state.seconds else 0.0,
            skipped=self._batches.skipped,
            history=state.history,
            peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            checkpoint=None if self._saver is None else self._saver.newest,
            interrupted=interrupted,
            tables=self._tables(),
            ranks=self._group.size,
            bytes_sent=dict(self._group.sent),
            bytes_per_step=self._sent / max(self._taken, 1),
        )

    def _tables(self) -> dict[str, Any]:
        try:
            return asdict(self.model.output.occupancy())
        except DataError:
            return {}  # this mode has none, or a resumed run had nothing left to do


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
