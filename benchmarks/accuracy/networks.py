"""Quadratic networks against deeper first-order ones that have more parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from accuracy.keeping import Keeper
from accuracy.learning import Recipe, Row, train
from accuracy.tasks import Task
from qcompile.models import qresnet14, qvgg7, resnet32, vgg13

__all__ = ["NETWORKS", "PAIRS", "Network", "compare"]

PAIRS = (("QVGG-7", "VGG-13"), ("QResNet-14", "ResNet-32"))


@dataclass(frozen=True)
class Network:
    """A network of the comparison.

    Args:
        build: makes it.
        scale: of its widths.
        side: of the images that it gets.
    """

    build: Callable[..., nn.Module]
    scale: float
    side: int

    def make(self, seed: int) -> nn.Module:
        """Return it with fresh weights."""
        torch.manual_seed(seed)
        return self.build(10, channels=1, scale=self.scale)


# At one width the quadratic networks would be the larger ones (12.3 M parameters against 9.4 M,
# 0.52 M against 0.47 M), so here the first-order ones are wider. Five poolings need a side of 32.
NETWORKS = {
    "QVGG-7": Network(qvgg7, 0.125, 32),
    "VGG-13": Network(vgg13, 0.145, 32),
    "QResNet-14": Network(qresnet14, 0.25, 28),
    "ResNet-32": Network(resnet32, 0.27, 28),
}


def compare(tasks: dict[int, Task], recipe: Recipe, seeds: int, keep: Keeper) -> Iterator[Row]:
    """Train each network with each seed; yield a row a run.

    Args:
        tasks: by side of the images.
        recipe: of all of them.
        seeds: how many.
        keep: of finished runs.
    """
    for seed in range(seeds):
        for name, network in NETWORKS.items():
            task = tasks[network.side]
            yield train("networks", name, seed, partial(network.make, seed), task, recipe, keep)
