"""Trains and judges the networks of a search."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset

from qcompile.builder.plan import BuildConfig
from qcompile.errors import DataError
from qcompile.optim import quadratic_groups
from qcompile.training.supervised import train_epoch

__all__ = ["Data", "Judge", "accuracy", "train"]

Data = tuple["Dataset[tuple[Tensor, Tensor]]", "Dataset[tuple[Tensor, Tensor]]"]
Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], float]

_EVALUATED = 256  # examples of one call


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of rows whose largest output is at the target."""
    return float((outputs.argmax(1) == targets).float().mean())


class Judge:
    """The metric of a model on the validation data, all outputs at once.

    Args:
        data: to judge by.
        metric: of all outputs and all targets; higher is better.
    """

    def __init__(self, data: Dataset[tuple[Tensor, Tensor]], metric: Metric) -> None:
        self._loader = DataLoader(data, batch_size=_EVALUATED)
        self._metric = metric

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        """Return the metric."""
        was_training = model.training
        model.eval()
        try:
            parts = [(model(inputs), targets) for inputs, targets in self._loader]
        finally:
            model.train(was_training)
        if not parts:
            raise DataError("autobuild: the validation data are empty.")
        outputs, targets = (torch.cat(column) for column in zip(*parts, strict=True))
        return self._metric(outputs, targets)


def train(
    model: nn.Module,
    data: Dataset[tuple[Tensor, Tensor]],
    epochs: int,
    loss: Loss,
    config: BuildConfig,
    stage: int,
    told: Callable[[int, int, float], None],
) -> None:
    """Train a model in place: SGD with momentum, a cosine, clipped gradients.

    Args:
        model: the network.
        data: to train on.
        epochs: passes over them.
        loss: of outputs and targets.
        config: rates and seed.
        stage: number of this training within the search; with the seed it fixes the order.
        told: called after each step with the step, the number of steps and the loss.

    Raises:
        TrainingError: an output or a gradient is NaN or infinite; names where.
    """
    if not epochs:
        return
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + stage)
    loader = DataLoader(data, config.batch, shuffle=True, generator=generator)
    groups = quadratic_groups(
        model, config.lr, scale=config.scale, weight_decay=config.weight_decay
    )
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    steps = epochs * len(loader)
    schedule = CosineAnnealingLR(optimizer, steps)
    count = itertools.count(1)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(config.seed * 1_000_003 + stage)
        for _ in range(epochs):
            train_epoch(
                model,
                loader,
                loss,
                optimizer,
                schedule,
                clip=config.clip,
                told=lambda value: told(next(count), steps, value),
                watch=1,
            )
    model.eval()


cross_entropy: Loss = F.cross_entropy
