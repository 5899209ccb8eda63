"""Makes the network and its optimiser: one place for the runs of one process and of many."""

from __future__ import annotations

import os
from typing import Any

import torch

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.distributed import Group, ShardedLSHLinear, distribute
from qcompile.errors import ConfigurationError
from qcompile.nn.lsh import LSHLinear
from qcompile.optim import SGD, Adam, AdamW, SparseAdam
from qcompile.training.batches import moments
from qcompile.training.config import TrainConfig
from qcompile.training.model import STORED, ExtremeClassifier

__all__ = ["build_head", "build_model", "build_optimizer"]


def build_model(config: TrainConfig, train: SparseDataset, group: Group) -> ExtremeClassifier:
    """Return the network with fresh weights, which depend on ``config.seed`` and the data alone.

    Several ranks divide the output layer; the first layer learns from the examples of all.

    Raises:
        ConfigurationError: the form of quadratic neuron needs too many weights, or the network more
            memory than there is.
    """
    _check_memory(config, train, group)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ExtremeClassifier(
            train.num_features,
            train.num_labels,
            config.hidden,
            config.quadratic,
            storage=config.storage,
            output=build_head(config, train.num_labels, group),
        )
        model.draw(torch.Generator().manual_seed(config.seed), *moments(train))
    return model if group.size == 1 else distribute(model, group)


def _check_memory(config: TrainConfig, train: SparseDataset, group: Group) -> None:
    labels = -(-train.num_labels // group.size)
    weights = train.num_features * config.hidden[0] + labels * config.hidden[-1]
    stored = STORED[config.storage].itemsize
    moments = 0 if config.optimizer == "sgd" else 2 * stored
    halves = 2 if config.storage == "bf16" else 0  # the lower ones of the weights
    needed, there = weights * (stored + halves + moments), _memory()
    if needed > there:
        raise ConfigurationError(
            f"training: {train.num_features:,} features and {train.num_labels:,} labels take "
            f"{needed / 1e9:,.1f} GB of weights and moments, this machine has {there / 1e9:,.1f} "
            "GB. If the data name no such label or feature on purpose, correct them; otherwise "
            "try a narrower --hidden, --storage bf16 or more machines."
        )


def _memory() -> float:
    """Return the bytes of the machine's memory, infinity where they are not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def build_head(config: TrainConfig, labels: int, group: Group) -> LSHLinear:
    """Return the output layer, which several ranks divide among them."""
    options: dict[str, Any] = {
        "config": config.sparse_output,
        "dtype": STORED[config.storage],
    }
    if group.size == 1:
        return LSHLinear(config.hidden[-1], labels, **options)
    return ShardedLSHLinear(config.hidden[-1], labels, group=group, **options)


def build_optimizer(config: TrainConfig, model: ExtremeClassifier) -> Any:
    """Return the optimiser, which updates the large layers within ``backward()``.

    Adam with weight decay, which its gradients contain, moves every row at every step and so
    cannot: it takes dense gradients, and time that grows with the number of labels.
    """
    first = list(model.input.parameters())
    known = {id(parameter) for parameter in first}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    rate = config.lr if config.input_lr is None else config.input_lr
    # In this order parameters have the numbers that they have in the model, and in older
    # checkpoints.
    groups: list[dict[str, Any]] = [{"params": first, "lr": rate}, {"params": rest}]
    if config.optimizer == "sparse-adam":
        optimizer: Any = SparseAdam(groups, lr=config.lr)
    else:
        kind = {"adam": Adam, "adamw": AdamW, "sgd": SGD}[config.optimizer]
        optimizer = kind(groups, lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer != "adam" or config.weight_decay == 0:
        layers = [module for module in model.modules() if hasattr(module, "row_updates")]
        optimizer.step_in_backward(*layers)
    return optimizer
