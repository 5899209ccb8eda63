"""Training on several ranks: one against two on this machine, and what 64 would take.

    python benchmarks/scaling.py [--quick] [--json FILE]

Variants take turns, each in processes of its own, started as torchrun starts them: one rank with
one thread, two ranks with one thread each, one rank with two threads. The data has the shape of
Amazon-670K; a step is the trainer's, and the bytes are counted by the collectives and compared with
the formula of docs/scaling.md. P@1 is that of the codespell task.

Of 64 ranks one is measured here: it does all that a rank of 64 does in a step, but its messages are
made up in advance. The time of the messages is then computed, not measured: bytes by bandwidth, and
hops of the ring by latency.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recording import record
from rich.console import Console
from rich.table import Table
from scipy import sparse
from torch import Tensor

from qcompile.data.codespell import datasets
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.data.synthetic import AMAZON_670K, extreme_classification
from qcompile.distributed import Group, Partition, ReplicatedSparseLinear, ranks, sum_gradients
from qcompile.nn import SparseLinear
from qcompile.optim import Adam
from qcompile.training import TrainConfig, train
from qcompile.training.batches import Batches
from qcompile.training.build import build_model, build_optimizer

WIDTH, BATCH = 128, 256
RANKS = 64  # of the projection
EACH = (8, 32, 128)  # examples of each of them
LABELS = 12  # of the example of a batch that has most
NETWORKS = (10, 25, 100)  # Gb/s
HOP = 30e-6  # seconds that a message takes to the next rank, whatever its size: assumed
VARIANTS = ((1, 1), (2, 1), (1, 2))  # ranks, threads of each
QUICK = {"features": 20_000, "labels": 60_000}


@dataclass(frozen=True)
class Row:
    """One run of one variant; seconds and bytes are those of a training step of one rank."""

    ranks: int
    threads: int
    run: int
    examples: int
    step: float
    fastest: float
    waiting: float
    sent: int


@dataclass(frozen=True)
class Learned:
    """P@1 of the codespell task."""

    ranks: int
    precision_at_1: float
    loss: float


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


def shape(quick: bool) -> dict[str, int]:
    """Return features and labels of the data."""
    return QUICK if quick else AMAZON_670K


def data(quick: bool, rows: int) -> SparseDataset:
    """Draw examples."""
    drawn = extreme_classification(rows, **shape(quick))
    return SparseDataset(*(sparse.csr_matrix(matrix) for matrix in drawn))


def formula(size: int, counts: Sequence[int], stored: Sequence[int], width: int) -> int:
    """Return the bytes that a rank sends in a step; docs/scaling.md derives it.

    Args:
        size: ranks.
        counts: examples of each.
        stored: entries of their features.
        width: labels of the example that has most.
    """
    others, most, total = size - 1, max(counts), sum(counts)
    message = max(4 * n + 8 * z for n, z in zip(counts, stored, strict=True))
    tables = 2 * others * 3 * 8
    gathered = others * (message + most * 4 * (WIDTH + width) + most * 4 * WIDTH)
    summed = 2 * 4 * total * others // size + 2 * 12 * total * others // size
    return tables + gathered + summed + (total - counts[0]) * 4 * WIDTH


def hops(size: int) -> int:
    """Return how many messages of a step follow one another: rings of gathers and reductions."""
    gathers, reductions, exchanges = 5, 2, 1
    return gathers * (size - 1) + reductions * 2 * (size - 1) + exchanges


def steps(group: Group, quick: bool, count: int) -> dict[str, float]:
    """Train some steps as the trainer does; return the figures of the median step."""
    examples = data(quick, BATCH * (count + 3))
    config = TrainConfig(hidden=(WIDTH,), batch=BATCH, evaluate_every=0)
    model = build_model(config, examples, group).train()
    optimizer = build_optimizer(config, model)
    batches = Batches(examples, BATCH, 0, group.rank, group.size).epoch(0)
    taken, waited, sent, expected = [], [], [], []
    for _ in range(count):
        features, labels = next(batches)
        table = group.table(len(labels), features.nnz, labels.shape[1])
        counts, stored, widths = (list(column) for column in zip(*table, strict=True))
        began, waiting, bytes_before = time.perf_counter(), group.seconds, group.bytes_sent
        optimizer.zero_grad()
        model(features, labels).loss.backward()
        sum_gradients(model, group)
        optimizer.step()
        taken.append(time.perf_counter() - began)
        waited.append(group.seconds - waiting)
        sent.append(group.bytes_sent - bytes_before)
        expected.append(formula(group.size, counts, stored, max(widths)))
    if sent != expected:
        raise SystemExit(f"bytes sent {sent[:3]} are not those of the formula {expected[:3]}")
    half = count // 2  # after memory and tables have been made
    middle = [statistics.median(values[half:]) for values in (taken, waited, sent)]
    return {
        "step": middle[0],
        "fastest": min(taken[half:]),
        "waiting": middle[1],
        "sent": int(middle[2]),
    }


def learn(group: Group, quick: bool) -> dict[str, float]:
    """Train on the codespell task."""
    result = train(
        TrainConfig(hidden=(WIDTH,), epochs=1 if quick else 5, evaluate_every=0),
        *datasets(),
        group=group,
    )
    return {"precision_at_1": result.metrics["P@1"], "loss": result.history[-1].loss}


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
    config = TrainConfig(hidden=(WIDTH,), batch=total, evaluate_every=0)
    layer = build_model(config, examples, group).output.train()
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


def launch(task: str, size: int, threads: int, quick: bool, each: int = 0) -> dict[str, float]:
    """Run a task of this file in ``size`` processes; return what the first one found."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(size), __file__, "--json", str(answer)]
        command += ["--task", task, "--each", str(each)]
        done = subprocess.run(
            command + ["--quick"] * quick,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        found: dict[str, float] = json.loads(answer.read_text())
        return found


def as_rank(task: str, quick: bool, each: int, answer: Path) -> int:
    """Do a task as one rank."""
    count = 24 if quick else 60
    with ranks() as group:
        if task == "steps":
            found = steps(group, quick, count)
        elif task == "learn":
            found = learn(group, quick)
        else:
            found = one_of_many(quick, each, count // 4)
        if group.rank == 0:
            answer.write_text(json.dumps(found))
    return 0


def measure(quick: bool, runs: int) -> tuple[list[Row], list[Learned], list[Projected]]:
    """Run everything, in turns."""
    rows = []
    for run in range(runs):
        for size, threads in VARIANTS:
            found = launch("steps", size, threads, quick)
            rows.append(Row(size, threads, run, BATCH, **found))
    learned = [Learned(size, **launch("learn", size, 1, quick)) for size in (1, 2)]
    examples = data(quick, 1000)
    entries = examples.features.nnz / len(examples)
    alone = BATCH / min(row.fastest for row in rows if (row.ranks, row.threads) == (1, 1))
    later = []
    for each in EACH:
        seconds = launch("one-of-many", 1, 1, quick, each)
        later += projected(each, seconds, entries, alone)
    return rows, learned, later


def middle(rows: Sequence[Row], size: int, threads: int) -> Row:
    """Return the run with the median step."""
    of_kind = sorted(
        (r for r in rows if (r.ranks, r.threads) == (size, threads)), key=lambda r: r.step
    )
    return of_kind[len(of_kind) // 2]


def show(rows: Sequence[Row], learned: Sequence[Learned], later: Sequence[Projected]) -> None:
    """Print the tables."""
    console = Console()
    table = Table(
        "ranks × threads", "step ms", "fastest", "of it waiting", "examples/s", "sent a step"
    )
    for size, threads in VARIANTS:
        row = middle(rows, size, threads)
        table.add_row(
            f"{size} × {threads}",
            f"{row.step * 1e3:.1f}",
            f"{row.fastest * 1e3:.1f}",
            f"{row.waiting * 1e3:.1f}",
            f"{BATCH / row.step:,.0f}",
            f"{row.sent:,}",
        )
    console.print(table)
    for found in learned:
        console.print(f"codespell, {found.ranks} ranks: P@1 {found.precision_at_1:.4f}")
    table = Table(
        "each", "Gb/s", "input ms", "output ms", "transfer ms", "latency ms", "examples/s", "×"
    )
    for p in later:
        times = (p.input_layer, p.output_layer, p.transfer, p.latency)
        table.add_row(
            str(p.each),
            str(p.gigabits),
            *(f"{t * 1e3:.1f}" for t in times),
            f"{p.examples_per_second:,.0f}",
            f"{p.speedup:.1f}",
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller data, one run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--each", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return as_rank(options.task, options.quick, options.each, options.json)
    rows, learned, later = measure(options.quick, 1 if options.quick else 3)
    show(rows, learned, later)
    apart = learned[1].precision_at_1 - learned[0].precision_at_1
    bars = [
        {
            "name": "P@1 of two ranks, against one",
            "value": apart,
            "target": -0.02,
            "ok": apart >= -0.02,
        }
    ]
    return record(
        options.json, ("torch", "numpy", "torch-qcompile"), [*rows, *learned, *later], bars
    )


if __name__ == "__main__":
    sys.exit(main())
