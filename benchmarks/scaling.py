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
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recording import record
from rich.console import Console
from rich.table import Table
from sharding.many import Projected, projected
from sharding.problem import BATCH, data

EACH = (8, 32, 128)  # examples of each of many ranks
VARIANTS = ((1, 1), (2, 1), (1, 2))  # ranks, threads of each


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


def launch(size: int, threads: int, **request: Any) -> dict[str, float]:
    """Carry out a request in ``size`` processes; return what the first one found."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(size), "-m", "sharding.rank"]
        done = subprocess.run(
            [*command, json.dumps(request), str(answer)],
            cwd=Path(__file__).parent,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        found: dict[str, float] = json.loads(answer.read_text())
        return found


def measure(quick: bool, runs: int) -> tuple[list[Row], list[Learned], list[Projected]]:
    """Run everything, in turns."""
    rows = []
    for run in range(runs):
        for size, threads in VARIANTS:
            found = launch(size, threads, task="steps", quick=quick)
            rows.append(Row(size, threads, run, BATCH, **found))
    learned = [Learned(size, **launch(size, 1, task="learn", quick=quick)) for size in (1, 2)]
    examples = data(quick, 1000)
    entries = examples.features.nnz / len(examples)
    alone = BATCH / min(row.fastest for row in rows if (row.ranks, row.threads) == (1, 1))
    later = []
    for each in EACH:
        seconds = launch(1, 1, task="one of many", quick=quick, each=each)
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
    options = parser.parse_args()
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
