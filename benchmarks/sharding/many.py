"""One rank of many, measured alone, and what a step of all of them would take.

The rank does all that a rank of ``RANKS`` does in a step, but its messages are made up in advance.
The time of the messages is computed: bytes by bandwidth, and hops of the ring by latency.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from qcompile.distributed import Group, Partition, ReplicatedSparseLinear
from qcompile.nn import SparseLinear
from qcompile.optim import Adam
from qcompile.training.build import build_model
from sharding.messages import formula, hops
from sharding.problem import WIDTH, config, data

__all__ = ["Projected", "one_of_many", "projected"]

RANKS = 64
LABELS = 12  # of the example of a batch that has most
NETWORKS = (10, 25, 100)  # Gb/s
HOP = 30e-6  # seconds that a message takes to the next rank, whatever its size: assumed


@dataclass(frozen=True)
class Projected:
    """One step of ``RANKS`` ranks: measured computation, computed messages."""

    gigabits: int
    each: int
    input_layer: float
    output_layer: float
    sent: int
    transfer: float
    hops: int
    latency: float
    examples_per_second: float
    speedup: float


class OneOfMany(Group):
    """The first of ``RANKS`` ranks; what the others would send is put in its place beforehand.

    Sums over ranks are this rank's own share: they cost as much, whatever their values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = RANKS
        self.tables: list[list[list[int]]] = []
        self.messages: list[Tensor] = []

    def table(self, *values: int) -> list[list[int]]:
        """Return what the ranks have told each other."""
        return self.tables.pop(0)

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows of all ranks."""
        return self.messages.pop(0)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Leave it."""
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Leave it."""
        return tensor

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Return rows of the right number and size."""
        return rows


def one_of_many(quick: bool, each: int, count: int) -> dict[str, float]:
    """Return the seconds that one of ``RANKS`` ranks computes in its fastest step."""
    total = RANKS * each
    group = OneOfMany()
    examples = data(quick, total)
    replicated = ReplicatedSparseLinear(SparseLinear(examples.num_features, WIDTH), group).train()
    layer = build_model(config(total), examples, group).output.train()
    optimizer = Adam([*replicated.parameters(), *layer.parameters()])
    optimizer.step_in_backward(replicated, layer)
    own, everything = (examples.batch(np.arange(n)) for n in (each, total))
    stored, message = csr_message(everything.features)
    labels = torch.from_numpy(everything.labels)
    seconds: dict[str, list[float]] = {"input_layer": [], "output_layer": []}
    for step in range(count):
        hidden = torch.relu(
            torch.randn(total, WIDTH, generator=torch.Generator().manual_seed(step))
        )
        group.tables = [[[each, entries] for entries in stored], [[each, labels.shape[1]]] * RANKS]
        group.messages = [message, torch.randn(total, WIDTH) * 1e-3]
        began = time.perf_counter()
        replicated(own.features).backward(torch.ones(each, WIDTH))
        seconds["input_layer"].append(time.perf_counter() - began)
        group.messages = [torch.cat([hidden.view(torch.int32), labels.int()], dim=1)]
        began = time.perf_counter()
        layer(hidden[:each].requires_grad_(), labels[:each]).loss.backward()
        seconds["output_layer"].append(time.perf_counter() - began)
        optimizer.step()
    return {name: min(values[count // 2 :]) for name, values in seconds.items()}


def csr_message(features: sparse.csr_matrix) -> tuple[list[int], Tensor]:
    """Return the entries of each rank's features, and what all of them send."""
    lengths, pieces, stored = np.diff(features.indptr), [], []
    for low, high in Partition(len(lengths), RANKS).ranges:
        entries = slice(features.indptr[low], features.indptr[high])
        values = features.data[entries].view(np.int32)
        pieces += [lengths[low:high], features.indices[entries], values]
        stored.append(len(values))
    return stored, torch.from_numpy(np.concatenate(pieces).astype(np.int32))


def projected(
    each: int, seconds: dict[str, float], entries: float, alone: float
) -> list[Projected]:
    """Add up a step of ``RANKS`` ranks in each network.

    Args:
        each: examples of a rank.
        seconds: that one rank computes.
        entries: features of an example.
        alone: examples a second of one rank without others.
    """
    sent = formula(RANKS, [each] * RANKS, [round(entries * each)] * RANKS, LABELS)
    latency = hops(RANKS) * HOP
    results = []
    for gigabits in NETWORKS:
        transfer = sent * 8 / (gigabits * 1e9)
        speed = RANKS * each / (sum(seconds.values()) + transfer + latency)
        results.append(
            Projected(
                gigabits,
                each,
                **seconds,
                sent=sent,
                transfer=transfer,
                hops=hops(RANKS),
                latency=latency,
                examples_per_second=speed,
                speedup=speed / alone,
            )
        )
    return results
