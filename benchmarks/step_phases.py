"""Where the time of a training step of a huge output layer goes, by mode, storage and threads.

Wall-clock milliseconds of the parts of a step as the C++ core reports them, with the optimiser's
step fused into the backward; medians over steps, variants taking turns. The processor's time of
all threads together is what a step costs on a machine that others use, too. Weights are random, so
that `lsh` activates more rows than after training.

    python benchmarks/step_phases.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from recording import record
from rich.console import Console
from rich.table import Table

from qcompile import LSH
from qcompile.nn.hash_tables import HashTables
from qcompile.optim import Adam
from qcompile.optim.row_updates import RowUpdates
from qcompile.runtime import _core
from qcompile.runtime.memory import huge_pages

DEPTH, BATCH, LABELS = 128, 128, 5
NEURONS, QUICK_NEURONS = 670_091, 50_000
PHASES = ("sample", "catch_up", "own", "shared", "hidden", "rows")
VARIANTS = [
    ("sampled", LSH(mode="sampled", negatives=4096)),
    ("lsh", LSH(mode="lsh", active=128, negatives=1024)),
    ("lsh async", LSH(mode="lsh", active=128, negatives=1024, accumulation="async")),
    ("full", LSH(mode="full")),
]


@dataclass(frozen=True)
class Phases:
    """One variant's medians, in milliseconds."""

    variant: str
    storage: str
    threads: int
    rows: int
    sample_ms: float
    catch_up_ms: float
    own_ms: float
    shared_ms: float
    hidden_ms: float
    rows_ms: float
    step_ms: float
    processor_ms: float


class Variant:
    """A layer with its optimiser, and the times of its steps."""

    def __init__(self, name: str, config: LSH, dtype: torch.dtype, neurons: int) -> None:
        self.name, self.config, self.neurons = name, config, neurons
        self.storage = str(dtype).removeprefix("torch.")
        weight = torch.randn(neurons, DEPTH).div_(DEPTH**0.5).to(dtype)
        self.weight = torch.nn.Parameter(huge_pages(weight))
        self.bias = torch.nn.Parameter(torch.zeros(neurons, dtype=dtype))
        self.optimizer = Adam([self.weight, self.bias])
        self.updates = RowUpdates(self.optimizer)
        self.tables = HashTables(config, DEPTH, neurons).current(self.weight.detach())
        self.times: dict[tuple[int, str], list[float]] = defaultdict(list)
        self.steps = self.rows = 0

    def step(self, threads: int, *, count: bool) -> None:
        """Take one training step."""
        hidden = torch.randn(BATCH, DEPTH).relu_()
        labels = torch.randint(self.neurons, (BATCH, LABELS))
        gradient, scale = torch.empty_like(hidden), torch.full((BATCH,), 1 / BATCH)
        weight, bias = self.weight.detach(), self.bias.detach()
        torch.set_num_threads(threads)
        start, processor = time.perf_counter(), time.process_time()
        c = self.config
        batch = _core.SparseSoftmax(
            self.tables if c.mode == "lsh" else None,
            hidden,
            labels,
            self.neurons,
            c.active,
            c.negatives,
            c.seed,
            self.steps,
            threads,
            mode=c.mode,
            accumulation=c.accumulation,
        )
        bound = self.updates.bound(self.weight), self.updates.bound(self.bias)
        batch.catch_up(*bound)
        batch.forward(hidden, weight, bias)
        batch.backward_update(hidden, weight, scale, gradient, *bound)
        self.optimizer.step()
        step, processor = time.perf_counter() - start, time.process_time() - processor
        self.steps, self.rows = self.steps + 1, batch.stats["rows"]
        if count:
            for phase in PHASES:
                self.times[threads, phase].append(batch.stats[f"{phase}_ms"])
            self.times[threads, "step"].append(step * 1e3)
            self.times[threads, "processor"].append(processor * 1e3)

    def row(self, threads: int) -> Phases:
        """Return the medians."""
        medians = {
            f"{name}_ms": round(statistics.median(times), 3)
            for (with_threads, name), times in self.times.items()
            if with_threads == threads
        }
        return Phases(self.name, self.storage, threads, self.rows, **medians)


def measure(neurons: int, threads: list[int], rounds: int) -> list[Phases]:
    """Let the variants of each mode take turns, a few steps at a time."""
    rows = []
    for name, config in VARIANTS:
        slow = name == "full"
        variants = [Variant(name, config, t, neurons) for t in (torch.float32, torch.bfloat16)]
        for turn in range(-2, 2 if slow else rounds):
            for variant in variants:
                for count in threads:
                    for _ in range(1 if slow else 10):
                        variant.step(count, count=turn >= 0)
        rows += [variant.row(count) for variant in variants for count in threads]
    return rows


def show(rows: list[Phases]) -> None:
    """Print the figures as a table."""
    table = Table("variant", "storage", "threads", "rows", *PHASES, "step", "processor")
    for row in rows:
        times = [getattr(row, f"{phase}_ms") for phase in (*PHASES, "step", "processor")]
        table.add_row(
            row.variant,
            row.storage,
            str(row.threads),
            f"{row.rows:,}",
            *(f"{value:.2f}" for value in times),
        )
    Console(width=140).print(table)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small layer, few steps")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--threads", type=int, default=2, help="most threads; 1 is measured, too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    threads = sorted({1, arguments.threads})
    neurons, rounds = (QUICK_NEURONS, 2) if arguments.quick else (NEURONS, 12)
    rows = measure(neurons, threads, rounds)
    show(rows)
    return record(arguments.json, ("torch", "torch-qcompile"), rows, [])


if __name__ == "__main__":
    sys.exit(main())
