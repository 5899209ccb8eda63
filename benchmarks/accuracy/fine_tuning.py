"""A network with ImageNet's weights learns other images, with quadratic terms and without.

EfficientNet-Lite0 up to its sixth stage stays as it is, so what it makes of each image is computed
once. Its last stage and its head are tuned, with a new classifier: as they are, or converted, which
starts at the same function.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import qcompile
from accuracy.keeping import Keeper
from accuracy.learning import Recipe, Row, train
from accuracy.tasks import Task
from qcompile.models import efficientnet_lite0

__all__ = ["FORMS", "compare", "tail", "trunk"]

FORMS = ("first-order", "Quadra")
FROZEN = 7  # the stem and six stages
SIDE = 64


def trunk(task: Task, keep: Keeper) -> Task:
    """Return what the frozen part makes of a task's images, [N, 192, 2, 2]; images are −1 to 1."""
    features = efficientnet_lite0(pretrained=True).features[:FROZEN].eval()
    features.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def seen(images: Tensor) -> Tensor:
        parts = []
        for at, part in enumerate(images.split(500)):
            large = F.interpolate(part, (SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
            parts.append(features(large.contiguous(memory_format=torch.channels_last)))
            if at % 10 == 0:
                print(f"frozen part: {at * 500:,} of {len(images):,}", file=sys.stderr)
        return torch.cat(parts)

    state = keep.load("frozen")
    if state is None:
        state = {"inputs": seen(task.inputs), "test_inputs": seen(task.test_inputs)}
        keep.save("frozen", state)
    return replace(task, **state)


def tail(form: str, seed: int) -> nn.Module:
    """Return the part that is tuned: [batch, 192, h, w] → [batch, 10]."""
    torch.manual_seed(seed)
    model = efficientnet_lite0(10, pretrained=True)
    model.features = model.features[FROZEN:]
    if form == FORMS[0]:
        return model
    wanted = qcompile.Quadratic(form, init="preserve", where="features.*", batch_norm="branch")
    return qcompile.transform(model, quadratic=wanted, strict=True)


def compare(task: Task, recipe: Recipe, seeds: int, keep: Keeper) -> Iterator[Row]:
    """Tune with each form and seed; yield a row a run."""
    seen = trunk(task, keep)
    for seed in range(seeds):
        for form in FORMS:
            yield train("fine-tuning", form, seed, partial(tail, form, seed), seen, recipe, keep)
