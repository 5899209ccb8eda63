"""Hash tables: seconds of a re-hash per family, and collision probabilities against theory.

A re-hash puts every row of a weight matrix into L = 50 tables: hashing and filling. Variants take
turns, and each figure is a median over rounds. Beside normal rows there are clustered ones, whose
buckets overflow as those of trained weights do.

    python benchmarks/hashing.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recording import record
from rich.console import Console
from rich.table import Table

import qcompile
from qcompile.runtime import _core
from qcompile.runtime.reference import collisions

NEURONS, DIMENSION, TABLES, BUCKET, THREADS = 670_091, 128, 50, 128, 2
BAR_SECONDS = 0.4
CHANGED = 0.1  # share of the rows that an incremental re-hash finds changed


@dataclass(frozen=True)
class Rehash:
    """Seconds that the tables of one family take."""

    kind: str
    family: str
    hashes: int
    neurons: int
    rows: str
    full_s: float
    full_cpu_s: float  # of all threads; other work on the machine hardly changes it
    incremental_s: float
    table_mb: float
    key_mb: float
    full_buckets_drop: float  # share of the rows


@dataclass(frozen=True)
class Agreement:
    """How often one code of two vectors agrees."""

    kind: str
    family: str
    pairs: str
    measured: float
    theory: float
    standard_error: float
    deviations: float


class Variant:
    """Full and incremental tables of one family over the same rows."""

    def __init__(self, family: str, hashes: int, rows: str, weight: np.ndarray) -> None:
        self.family, self.hashes, self.rows, self.weight = family, hashes, rows, weight
        self.times: dict[bool, list[float]] = {False: [], True: []}
        self.cpu: list[float] = []
        self.notes: dict[str, Any] = {}

    def measure(self, rounds: int, rng: np.random.Generator) -> None:
        """Take the times of a few builds, the first of which allocates and is not counted."""
        count = len(self.weight)
        for incremental in (False, True):
            tables = _core.LshTables(
                DIMENSION,
                count,
                self.family,
                TABLES,
                self.hashes,
                BUCKET,
                "reservoir",
                0,
                incremental=incremental,
            )
            for generation in range(rounds + 1):
                changed = rng.choice(count, round(CHANGED * count), replace=False)
                self.weight[changed] *= -1
                start, cpu = time.perf_counter(), time.process_time()
                tables.build(self.weight, generation, THREADS)
                if generation:
                    self.times[incremental].append(time.perf_counter() - start)
                    if not incremental:
                        self.cpu.append(time.process_time() - cpu)
            self.notes = tables.occupancy()

    def row(self) -> Rehash:
        """Return the medians."""
        count = len(self.weight)
        return Rehash(
            "re-hash",
            self.family,
            self.hashes,
            count,
            self.rows,
            round(statistics.median(self.times[False]), 4),
            round(statistics.median(self.cpu), 4),
            round(statistics.median(self.times[True]), 4),
            round(self.notes["table_bytes"] / 1e6, 1),
            round(self.notes["key_bytes"] / 1e6, 1),
            round(self.notes["dropped"] / (TABLES * count), 4),
        )


def weights(count: int, clustered: bool) -> np.ndarray:
    """Return rows, independent or around a few centres of which some are popular."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, DIMENSION), dtype=np.float32)
    if clustered:
        centres = rng.standard_normal((2000, DIMENSION), dtype=np.float32)
        share = 1 / np.arange(10, 2010)
        rows = 0.5 * rows + centres[rng.choice(2000, count, p=share / share.sum())]
    return rows


def rehashes(neurons: int, rounds: int) -> list[Rehash]:
    """Measure every family."""
    default = qcompile.LSH().hashes_for(neurons)
    normal, clustered = weights(neurons, False), weights(neurons, True)
    variants = [
        Variant("dwta", default, "normal", normal),
        Variant("dwta", default + 1, "normal", normal),
        Variant("dwta", default, "clustered", clustered),
        Variant("wta", default, "normal", normal),
        Variant("doph", default, "normal", normal),
        Variant("simhash", qcompile.LSH(family="simhash").hashes_for(neurons), "normal", normal),
    ]
    rng = np.random.default_rng(1)
    for turn in range(rounds):
        for variant in variants:
            Console(stderr=True).print(f"round {turn + 1}: {variant.family} {variant.rows}")
            variant.measure(2, rng)
    return [variant.row() for variant in variants]


def measured(family: str, a: np.ndarray, b: np.ndarray, draws: int) -> tuple[float, float]:
    """Return how often codes agree, and the standard error over draws of 500 functions."""
    means = []
    for seed in range(draws):
        core = _core.LshTables(a.shape[1], 2**19, family, 500, 1, 1, "fifo", seed)
        means.append((core.keys(a) == core.keys(b)).mean())
    return float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(draws))


def agreements(draws: int) -> list[Agreement]:
    """Compare every family with its theory."""
    found = []
    rng = np.random.default_rng(2)
    for zeros, cosines in ((0.0, (0.0, 0.5, 0.9, 0.99)), (0.9, (0.5, 0.9))):
        for cosine in cosines:
            a, b = rng.standard_normal((2, 100, DIMENSION))
            b = cosine * a + np.sqrt(1 - cosine**2) * b
            a[rng.random(a.shape) < zeros] = 0
            b[rng.random(b.shape) < zeros] = 0
            a, b = a.astype(np.float32), b.astype(np.float32)
            theory = {
                "simhash": (collisions.simhash_agreement(a, b), 0.0),
                "wta": collisions.wta_agreement(a, b, 20 * draws, rng),
                "dwta": collisions.dwta_agreement(a, b, 20 * draws, rng),
                "doph": collisions.doph_agreement(a, b, 20 * draws, rng),
            }
            if zeros:
                theory = {"dwta": theory["dwta"]}  # what densification is for
            kind = f"cosine {cosine}" + (f", {zeros:.0%} zeros" if zeros else "")
            for family, (expected, doubt) in theory.items():
                mean, error = measured(family, a, b, draws)
                total = float(np.hypot(error, doubt))
                found.append(
                    Agreement(
                        "agreement",
                        family,
                        kind,
                        round(mean, 4),
                        round(expected, 4),
                        round(total, 4),
                        round((mean - expected) / total, 1),
                    )
                )
            if not zeros:
                Console(stderr=True).print(
                    f"{kind}: Jaccard similarity of top sets {collisions.jaccard(a, b):.3f}"
                )
    return found


def draw(times: list[Rehash], agreed: list[Agreement]) -> list[Table]:
    """Lay the rows out for a terminal."""
    first = Table(
        title=f"re-hash of {times[0].neurons:,} × {DIMENSION}, L = {TABLES}, {THREADS} threads"
    )
    for head in ("family", "K", "rows", "full s", "CPU s", f"{CHANGED:.0%} changed s", "tables MB"):
        first.add_column(
            head, justify="right" if head[0] in "KCf1t" and head != "family" else "left"
        )
    first.add_column("kept keys MB", justify="right")
    first.add_column("dropped", justify="right")
    for row in times:
        first.add_row(
            row.family,
            str(row.hashes),
            row.rows,
            f"{row.full_s:.3f}",
            f"{row.full_cpu_s:.3f}",
            f"{row.incremental_s:.3f}",
            f"{row.table_mb:.0f}",
            f"{row.key_mb:.0f}",
            f"{row.full_buckets_drop:.1%}",
        )
    second = Table(title="share of equal codes; deviation in standard errors")
    for head in ("pairs", "family", "measured", "theory", "± error", "deviation"):
        second.add_column(head, justify="left" if head in ("pairs", "family") else "right")
    for pair in agreed:
        second.add_row(
            pair.pairs,
            pair.family,
            f"{pair.measured:.4f}",
            f"{pair.theory:.4f}",
            f"{pair.standard_error:.4f}",
            f"{pair.deviations:+.1f}",
        )
    return [first, second]


def bars(times: list[Rehash], agreed: list[Agreement]) -> list[dict[str, Any]]:
    """Compare with what a re-hash may take, and theory with what chance allows."""
    checks = [
        (f"seconds of a full re-hash, dwta K={r.hashes}, {r.rows} rows", r.full_s, BAR_SECONDS)
        for r in times
        if r.family == "dwta" and r.neurons == NEURONS
    ]
    # SimHash sums a third of the coordinates, and lenders share permutations: up to .008 is known.
    unexplained = [abs(a.measured - a.theory) / (4.5 * a.standard_error + 0.008) for a in agreed]
    checks.append(("largest deviation from theory, of what is allowed", max(unexplained), 1.0))
    return [
        {"name": n, "value": round(v, 4), "target": round(t, 4), "ok": v <= t} for n, v, t in checks
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, fewer rounds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    times = rehashes(NEURONS // 10 if options.quick else NEURONS, 1 if options.quick else 3)
    agreed = agreements(8 if options.quick else 30)
    console = Console(width=120 if not sys.stdout.isatty() else None)
    for table in draw(times, agreed):
        console.print(table)
    results = bars(times, agreed)
    for bar in results:
        verdict = "ok" if bar["ok"] else "FAILED"
        print(f"{verdict:<6} {bar['name']}: {bar['value']} (at most {bar['target']})")
    return record(options.json, ("numpy",), [*times, *agreed], results)


if __name__ == "__main__":
    sys.exit(main())
