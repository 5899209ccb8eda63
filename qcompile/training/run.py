"""One call that trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.distributed import Group
from qcompile.training.config import TrainConfig
from qcompile.training.observers import Observer
from qcompile.training.result import TrainResult
from qcompile.training.trainer import Trainer

__all__ = ["train"]


def train(
    config: TrainConfig,
    train: SparseDataset,
    test: SparseDataset | None = None,
    *,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    observers: Iterable[Observer] = (),
    group: Group | None = None,
) -> TrainResult:
    """Train a network.

    Args:
        config: network, optimiser, schedule.
        train: the examples; those without labels are skipped.
        test: what is evaluated after epochs; ``None`` evaluates nothing.
        checkpoints: folder for checkpoints; ``None`` keeps none.
        resume: go on from the newest checkpoint there.
        observers: who watches.
        group: the ranks of a distributed run; alone by default.

    Raises:
        ConfigurationError: the configuration does not fit the data.
        DataError: there is nothing to learn, or ``test`` does not fit ``train``.
        TrainingError: the loss is no longer a number.
        CheckpointError: a checkpoint cannot be read, written, or gone on from.
    """
    folder = None if checkpoints is None else Path(checkpoints)
    # Whatever is random is the run's own: it neither depends on the caller's state nor changes it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Trainer(
            config, train, test, folder=folder, resume=resume, observers=observers, group=group
        ).run()
