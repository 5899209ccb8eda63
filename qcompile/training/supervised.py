"""One epoch of training from pairs of inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from qcompile.training.extremes import ExtremeValues, clip_gradients

__all__ = ["train_epoch"]


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
