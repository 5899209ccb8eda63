"""Training huge output layers: qcompile beside torch, Omikuji and PECOS on the same cores.

Every run has a process of its own; those that are compared take turns. Speed and memory are
measured on the shape of Amazon-670K, quality there and on geonames (real names of 235 thousand
cities). Run from anywhere::

    python benchmarks/training.py [--quick] [--parts speed shape trees geonames full] [--json FILE]
        [--plots FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extreme.trees import LEARNERS, LearnerError, learn
from recording import record
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
NEGATIVES = 4_096
# glibc hands large tensors back to the system at every step; kept, on huge pages, torch's dense
# training is twice as fast. torch gets it, qcompile is measured as it comes.
TUNED = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296"
    ":glibc.malloc.trim_threshold=4294967296"
}
Variant = tuple[str, dict[str, Any]]
LSH: Variant = ("ours", {"storage": "fp32"})
LSH_BF16: Variant = ("ours", {"storage": "bf16"})
LSH_LAZY: Variant = ("ours", {"storage": "fp32", "lazy": True})
SAMPLED: Variant = ("ours", {"storage": "fp32", "mode": "sampled", "negatives": NEGATIVES})
# The mathematics of torch's: idle rows rest.
SAMPLED_LAZY: Variant = ("ours", {**SAMPLED[1], "lazy": True})
FULL_NAME = "qcompile full bf16"
FULL: Variant = ("ours", {"storage": "bf16", "mode": "full"})
DENSE: Variant = ("dense", {"storage": "bf16"})
TORCH_SAMPLED: Variant = ("sampled", {"negatives": NEGATIVES})
SPEED: dict[str, Variant] = {
    "qcompile lsh": LSH,
    "qcompile lsh bf16": LSH_BF16,
    "qcompile lsh async": ("ours", {"storage": "fp32", "accumulation": "async"}),
    "qcompile sampled": SAMPLED,
    "qcompile sampled, lazy": SAMPLED_LAZY,
    "qcompile sampled bf16, lazy": ("ours", {**SAMPLED_LAZY[1], "storage": "bf16"}),
    FULL_NAME: FULL,
    "torch dense fp32": ("dense", {"storage": "fp32"}),
    "torch dense bf16": DENSE,
    "torch sampled": TORCH_SAMPLED,
}
SLOW = ("full", "dense")
LSH_NAME, LAZY_NAME = "qcompile lsh", "qcompile lsh, lazy"
PARTS = ("speed", "shape", "trees", "geonames", "full")
QUALITY: dict[str, Variant] = {
    LSH_NAME: LSH,
    LAZY_NAME: LSH_LAZY,
    "qcompile sampled": SAMPLED,
    "qcompile sampled, lazy": SAMPLED_LAZY,
    "torch sampled": TORCH_SAMPLED,
}


@dataclass(frozen=True)
class Row:
    """One line of the tables; what was not measured is ``None``."""

    table: str
    problem: str
    name: str
    threads: int = 2
    step_ms: float | None = None
    seconds_per_1000: float | None = None
    seconds: float | None = None
    p1: float | None = None
    p5: float | None = None
    peak_mb: float | None = None
    curve: list[dict[str, float]] | None = None


def run(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out a request in a process of its own."""
    environment = {**os.environ, **(TUNED if request["kind"] in ("dense", "sampled") else {})}
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(request)],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{request} failed:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def speed(problem: str, rounds: int, quick: bool) -> list[Row]:
    """Time the variants in turn, and some of ours on one thread."""
    asked = [(name, *variant, 2) for name, variant in SPEED.items()]
    asked += [(name, *SPEED[name], 1) for name in ("qcompile lsh", "qcompile sampled")]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, kind, options, threads in asked:
            slow = any(word in name for word in SLOW)
            steps = (2, 4) if slow or quick else (60, 200)
            request = {"problem": problem, "kind": kind, "options": options, "threads": threads}
            request |= dict(zip(("warmup", "steps"), steps, strict=True))
            found.setdefault((name, threads), []).append(run("extreme.run", request))
    return [
        Row("speed", problem, name, threads, **_medians(runs))
        for (name, threads), runs in found.items()
    ]


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    keys = ("step_ms", "seconds_per_1000", "peak_mb")
    return {key: statistics.median(one[key] for one in runs) for key in keys}


def quality(problem: str, name: str, variant: Variant, **limits: float) -> Row:
    """Train to the limits; P@1 and P@5 on the way are of a sample of the test rows."""
    kind, options = variant
    request = {"problem": problem, "kind": kind, "options": options, **limits}
    found = run("extreme.run", request)
    return Row(
        "quality",
        problem,
        name,
        seconds=found["curve"][-1]["seconds"],
        p1=found["p1"],
        p5=found["p5"],
        peak_mb=found["peak_mb"],
        curve=found["curve"],
    )


def trees(problem: str, limit: float) -> list[Row]:
    """Train Omikuji and PECOS, where they are installed, for at most ``limit`` seconds each."""
    rows = []
    for kind in LEARNERS:
        try:
            rows.append(Row("trees", problem, kind, **learn(problem, kind, limit)))
        except LearnerError as error:
            print(f"{kind} left out: {error}", file=sys.stderr, flush=True)
    return rows


def bars(rows: list[Row]) -> list[dict[str, Any]]:
    """Hold the figures against the targets."""
    found: list[dict[str, Any]] = []

    def bar(name: str, value: float | None, target: float, least: bool = True) -> None:
        ok = value is not None and (value >= target if least else value <= target)
        found.append({"name": name, "value": value, "target": target, "ok": ok})

    fast = {(row.name, row.threads): row for row in rows if row.table == "speed"}
    if fast:
        lsh, sampled = fast[LSH_NAME, 2], fast["qcompile sampled, lazy", 2]
        dense, torch_sampled = fast["torch dense bf16", 2], fast["torch sampled", 2]
        bar("lsh, times as fast as torch dense bf16", dense.step_ms / lsh.step_ms, 20)
        bar("lsh, times as fast as torch sampled", torch_sampled.step_ms / lsh.step_ms, 1.5)
        bar("sampled, lazy as torch's, times as fast", torch_sampled.step_ms / sampled.step_ms, 4)
        halves = fast["qcompile sampled bf16, lazy", 2]
        bar("the same, stored as bf16", torch_sampled.step_ms / halves.step_ms, 4)
        bar("lsh, 1 to 2 threads", fast[LSH_NAME, 1].step_ms / lsh.step_ms, 1.7)
        bar("peak memory fp32, MB", lsh.peak_mb, 1900, least=False)
        bar("peak memory bf16, MB", fast["qcompile lsh bf16", 2].peak_mb, 1400, least=False)
    curves = {(row.problem, row.name): row for row in rows if row.table == "quality"}
    shape = next(
        (row for key, row in curves.items() if key == ("amazon-670k-like", LSH_NAME)), None
    )
    if shape is not None:
        bar("P@1 on the 670k shape, 12 epochs", shape.p1, 0.51)
        bar("its seconds of training", shape.seconds, 60, least=False)
    names = {name: row for (problem, name), row in curves.items() if problem == "geonames"}
    if "torch dense bf16" in names:
        ours, full = names[LAZY_NAME], names["torch dense bf16"]
        goal = max(point["p1"] for point in full.curve or [])
        needed = next((p["seconds"] for p in full.curve or [] if p["p1"] >= goal), None)
        ready = next((p["seconds"] for p in ours.curve or [] if p["p1"] >= goal), None)
        bar(
            "geonames, time to dense's best P@1, times sooner",
            needed / ready if ready else None,
            10,
        )
        bar("geonames, final P@1 less dense's", ours.p1 - full.p1, -0.005)
        bar("geonames, final P@1 less torch sampled's", ours.p1 - names["torch sampled"].p1, 0)
    if FULL_NAME in names and LAZY_NAME in names:
        gain = names[LAZY_NAME].p1 - names[FULL_NAME].p1
        bar("geonames, final P@1 less the full softmax's after as many epochs", gain, -0.005)
    return found


def show(rows: list[Row], checks: list[dict[str, Any]]) -> None:
    """Print one table a measurement, and the bars."""
    console = Console(width=110)
    columns = ("threads", "step_ms", "seconds_per_1000", "seconds", "p1", "p5", "peak_mb")
    for name in dict.fromkeys(row.table for row in rows):
        part = [row for row in rows if row.table == name]
        used = [key for key in columns if any(getattr(row, key) is not None for row in part)]
        table = Table("problem", "", *used, title=name)
        for row in part:
            cells = [getattr(row, key) for key in used]
            table.add_row(row.problem, row.name, *("" if c is None else f"{c:.4g}" for c in cells))
        console.print(table)
    for check in checks:
        value = "not measured" if check["value"] is None else f"{check['value']:.4g}"
        console.print(f"{'✓' if check['ok'] else '✗'} {check['name']}: {value} ({check['target']})")


def plot(rows: list[Row], folder: Path) -> None:
    """Draw P@1 and P@5 against the seconds of training, one picture a problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for problem in dict.fromkeys(row.problem for row in rows if row.curve):
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
        for axis, key, title in zip(axes, ("p1", "p5"), ("P@1", "P@5"), strict=True):
            for row in rows:
                if row.curve and row.problem == problem:
                    points = [(point["seconds"], point[key]) for point in row.curve]
                    axis.plot(*zip(*points, strict=True), marker=".", label=row.name)
            axis.set(xscale="log", xlabel="seconds of training", ylabel=title, title=problem)
            axis.grid(alpha=0.3)
        axes[0].legend()
        figure.savefig(folder / f"training-{problem}.png", dpi=110)
        pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small problem, less than a minute")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dense-seconds",
        type=float,
        default=1200,
        metavar="S",
        help="training time of torch's full softmax on geonames",
    )
    parser.add_argument("--epochs", type=float, default=3, help="of the others on geonames")
    parser.add_argument(
        "--peer-seconds",
        type=float,
        default=300,
        metavar="S",
        help="time after which Omikuji and PECOS are stopped and left out",
    )
    options = parser.parse_args()
    shape = "small" if options.quick else "amazon-670k-like"
    rows: list[Row] = []
    if "speed" in options.parts:
        rows += speed(shape, 1 if options.quick else options.rounds, options.quick)
    if "shape" in options.parts:
        epochs = 3 if options.quick else 12
        rows += [quality(shape, name, v, epochs=epochs) for name, v in QUALITY.items()]
    if "trees" in options.parts and not options.quick:
        rows += trees(shape, options.peer_seconds)
    if "geonames" in options.parts and not options.quick:
        limits = {"epochs": options.epochs, "every": 0.25}
        rows += [quality("geonames", name, v, **limits) for name, v in QUALITY.items()]
        limits = {"seconds": options.dense_seconds, "every": 0.1}
        rows.append(quality("geonames", "torch dense bf16", DENSE, **limits))
    if "full" in options.parts and not options.quick:
        limits = {"epochs": options.epochs, "every": 0.5}
        rows.append(quality("geonames", FULL_NAME, FULL, **limits))
    checks = [] if options.quick else bars(rows)
    show(rows, checks)
    if options.plots is not None:
        options.plots.mkdir(parents=True, exist_ok=True)
        plot(rows, options.plots)
    return record(options.json, ("torch", "numpy", "torch-qcompile"), rows, checks)


if __name__ == "__main__":
    raise SystemExit(main())
