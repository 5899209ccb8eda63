"""Which neurons of a hidden layer each example activates."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from qcompile.config import LSH
from qcompile.errors import ConfigurationError
from qcompile.nn.active_softmax import sample_active
from qcompile.nn.hash_tables import HashTables

__all__ = ["active_neurons", "check_active"]

Ids = np.ndarray
"""int64 [A]: the neurons of one example, distinct."""


def check_active(config: LSH, layer: str) -> None:
    """Raise ConfigurationError where ``config`` leaves no room for a candidate."""
    if config.active < 2:
        raise ConfigurationError(
            f"{layer}: LSH.active must be at least 2, got {config.active}: of a hidden layer it is "
            f"the number of neurons that an example computes."
        )


def active_neurons(
    tables: HashTables, queries: Tensor, weight: Tensor, config: LSH, step: int
) -> list[Ids]:
    """Pick ``config.active`` neurons an example, or all if there are not more.

    With ``mode="lsh"`` those that collide with the query (SLIDE, MLSys 2020, section 4.1), filled
    up with random ones where too few do, as the authors' code does; with ``"sampled"`` random ones
    alone; with ``"full"`` all. The choice depends on seed and step, not on the number of threads.

    Args:
        tables: over the rows of ``weight``.
        queries: float32 [B, d], contiguous.
        weight: float32 [N, d], contiguous.
        config: of the layer.
        step: counts training steps.

    Returns:
        B lists.
    """
    neurons = len(weight)
    if config.mode == "full" or config.active >= neurons:
        return [np.arange(neurons)] * len(queries)
    lists = [np.empty(0, np.int64)] * len(queries)
    if config.mode == "lsh" and len(queries):
        lists = _candidates(tables, queries, weight, config, step)
    return _filled(lists, neurons, config, step)


def _candidates(
    tables: HashTables, queries: Tensor, weight: Tensor, config: LSH, step: int
) -> list[Ids]:
    unlabelled = torch.full((len(queries), 1), -1)
    batch = sample_active(
        dataclasses.replace(config, negatives=0),
        tables.current(weight),
        queries,
        unlabelled,
        len(weight),
        step,
        allow_unlabelled=True,
    )
    return [ids.astype(np.int64) for ids in batch.own]


def _filled(lists: list[Ids], neurons: int, config: LSH, step: int) -> list[Ids]:
    """Add random neurons until each list has ``config.active``."""
    if all(len(ids) >= config.active for ids in lists):
        return lists
    random = np.random.Generator(np.random.Philox(key=[config.seed, step]))
    # Twice as many as needed leave enough whatever the list has already.
    pool = random.choice(neurons, min(2 * config.active, neurons), replace=False)
    starts = random.integers(len(pool), size=len(lists))
    return [
        _fill(ids, np.roll(pool, s), config.active) for ids, s in zip(lists, starts, strict=True)
    ]


def _fill(ids: Ids, pool: Ids, active: int) -> Ids:
    if len(ids) >= active:
        return ids
    fresh = pool[~np.isin(pool, ids)]
    return np.concatenate([ids, fresh[: active - len(ids)]])
