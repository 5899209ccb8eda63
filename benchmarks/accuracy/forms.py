"""Every form of quadratic neuron in one small network, beside the first-order neuron."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from accuracy.keeping import Keeper
from accuracy.learning import Recipe, Row, train
from accuracy.tasks import Task
from qcompile.config import FORMS
from qcompile.models import VGG
from qcompile.models.vgg import POOL

__all__ = ["FIRST_ORDER", "SIGNED", "compare", "network"]

FIRST_ORDER = "first-order"
SIGNED = "T2, images from −1 to 1"
"""T2 where the sign of an input matters: black and white are the same to it."""

# Narrow, since a neuron xᵀ A x of n inputs has n² weights: 72² of the second and third layers.
WIDTHS = (8, POOL, 8, POOL, 16)


def network(form: str, seed: int) -> nn.Module:
    """Return the network with fresh weights."""
    torch.manual_seed(seed)
    kind = {} if form == FIRST_ORDER else {"form": form}
    return VGG(WIDTHS, 10, channels=1, **kind)


def compare(task: Task, signed: Task, recipe: Recipe, seeds: int, keep: Keeper) -> Iterator[Row]:
    """Train the network with each form and seed; yield a row a run.

    Args:
        task: images from 0 to 1.
        signed: the same from −1 to 1.
        recipe: of all networks.
        seeds: how many.
        keep: of finished runs.
    """
    for seed in range(seeds):
        for form in (FIRST_ORDER, *FORMS):
            yield train("forms", form, seed, partial(network, form, seed), task, recipe, keep)
        yield train("forms", SIGNED, seed, partial(network, "T2", seed), signed, recipe, keep)
