"""Training from pairs of inputs and targets, as the papers on quadratic networks do it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from qcompile.optim import quadratic_groups
from qcompile.training.epochs import Epochs, Told
from qcompile.training.extremes import ExtremeValues, clip_gradients

__all__ = ["Recipe", "SupervisedTraining", "train_epoch"]


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    clip: float,
    told: Callable[[float], None],
    watch: int = 20,
) -> float:
    """Take a step for each batch.

    Args:
        model: is trained in place.
        batches: inputs, which the model is called with, and targets.
        loss: of outputs and targets, a mean.
        optimizer: of the model's parameters.
        schedule: takes a step after each of the optimiser's.
        clip: largest norm of all gradients.
        told: is called after each step with its loss.
        watch: outputs of layers are looked at in every so many steps.

    Returns:
        The mean loss of the steps.

    Raises:
        TrainingError: an output or a gradient is NaN or infinite; names where.
    """
    model.train()
    total, steps = 0.0, 0
    with ExtremeValues(model, every=watch):
        for inputs, targets in batches:
            value = loss(model(inputs), targets)
            optimizer.zero_grad()
            value.backward()
            clip_gradients(model, clip)
            optimizer.step()
            schedule.step()
            steps += 1
            total += float(value.detach())
            told(float(value.detach()))
    return total / max(steps, 1)


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        batch: examples of a step.
        rate: the learning rate that a cosine begins with.
        decay: of all weights.
        clip: largest norm of all gradients.
    """

    batch: int
    rate: float
    decay: float
    clip: float


class SupervisedTraining(ABC):
    """A network, its data, and a checkpoint after each epoch: SGD with momentum and a cosine.

    Args:
        name: of the run.
        model: is trained in place.
        examples: of an epoch.
        recipe: see there.
        epochs: number of them.
        folder: gets the checkpoints; what is there is gone on from.
        settings: plain values that a checkpoint must agree with.

    Attributes:
        curve: figures of each epoch: ``seconds``, training ``loss`` and what is measured.

    Raises:
        CheckpointError: see :class:`qcompile.training.epochs.Epochs`.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        examples: int,
        recipe: Recipe,
        epochs: int,
        folder: Path,
        settings: Mapping[str, Any],
    ) -> None:
        self.name, self.model, self._recipe = name, model, recipe
        groups = quadratic_groups(model, recipe.rate, scale=1.0, weight_decay=recipe.decay)
        self._optimizer = torch.optim.SGD(groups, momentum=0.9)
        self._steps = -(-examples // recipe.batch)
        self._schedule = CosineAnnealingLR(self._optimizer, max(epochs, 1) * self._steps)
        parts = {"model": model, "optimizer": self._optimizer, "schedule": self._schedule}
        self._epochs = Epochs(name, folder, parts, settings, epochs)
        self.curve = self._epochs.curve

    def train(self, bar: Progress | None = None) -> None:
        """Train what is left of the epochs.

        Raises:
            TrainingError: the network diverges.
        """
        self._epochs.run(self._epoch, self._steps, bar)

    @abstractmethod
    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Yield the inputs and targets of an epoch."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss of a batch, a scalar."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Return figures of the network on the test data."""

    def _epoch(self, told: Told) -> dict[str, float]:
        began = time.perf_counter()
        loss = train_epoch(
            self.model,
            self.batches(),
            self.loss,
            self._optimizer,
            self._schedule,
            clip=self._recipe.clip,
            told=told,
        )
        return {"seconds": time.perf_counter() - began, "loss": loss, **self.measure()}
