"""One search of ``autobuild``: which layers of a VGG-7 pay as quadratic ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from accuracy.tasks import Task
from qcompile import BuildConfig, autobuild
from qcompile.builder import BuildResult
from qcompile.models import vgg7

__all__ = ["SearchStep", "search", "steps"]

SCALE = 0.125


@dataclass(frozen=True)
class SearchStep:
    """A step of the search, as :class:`qcompile.builder.Step` describes it."""

    part: str
    action: str
    layer: str
    parameters: int
    flops: int
    metric: float
    kept: bool
    note: str


def search(task: Task, config: BuildConfig, folder: Path | None) -> BuildResult:
    """Search on all examples but the last sixth, which judges; the test images are not seen."""
    held = len(task.labels) // 6
    parts = [
        TensorDataset(task.inputs[part], task.labels[part])
        for part in (slice(None, -held), slice(-held, None))
    ]
    torch.manual_seed(config.seed)
    model = vgg7(10, channels=1, scale=SCALE).to(memory_format=torch.channels_last)
    return autobuild(model, (parts[0], parts[1]), budget=config, folder=folder)


def steps(result: BuildResult) -> list[SearchStep]:
    """Return the steps as rows."""
    return [SearchStep("search", **asdict(step)) for step in result.steps]
