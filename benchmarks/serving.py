"""Serving huge output layers: qcompile beside onnxruntime's own operators and every known index.

Three heads: 670,091 and 200,113 structured synthetic classes, and the cities of geonames as
`qcompile train` learns them. Each engine has a process of its own; they take turns within one run,
and each figure is the median over all rounds of one whole call from Python: onnxruntime's Run for
ours, the library's own call for the others. Recall counts against the float64 answers. Run from
anywhere::

    python benchmarks/serving.py [--quick] [--heads w670 w200 geonames] [--engines NAME …]
        [--folder FOLDER] [--build] [--json FILE] [--plot FILE]

Heads and indexes are kept in the folder, so that a second run only measures. scann, faiss-cpu and
hnswlib come with the extra `bench`; what is not installed is left out. Two more layers are exported
and compared with themselves: a text recogniser's, and one of 1,000 classes.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recording import record
from retrieval import others
from retrieval.engine import K
from retrieval.engines import ENGINES, missing
from retrieval.heads import truth
from retrieval.load import NAMES, load
from retrieval.table import Built, Measured, bars, draw, draw_built, plot
from retrieval.turns import Remote
from rich.console import Console

PACKAGES = ("onnxruntime", "numpy", "scann", "faiss-cpu", "hnswlib")
PAUSE = 0.01  # seconds between engines, so that one's idle threads stop spinning
SLOW = 5.0  # milliseconds of a call above which fewer are made
stderr = Console(stderr=True, highlight=False)


@dataclass
class Series:
    """One engine's setting at one batch size, and the times of its calls."""

    remote: Remote
    engine: str
    threads: int
    point: dict[str, Any]
    batch: int
    recall: dict[str, float]
    ms: list[float] = field(default_factory=list)


def build(head: str, engines: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """Build every index that the folder lacks, one after the other."""
    found = {}
    for name in engines:
        with Remote(name, head, folder, threads=2) as remote:
            stderr.print(f"{head}: building {name}")
            found[name] = remote.ask("build")
    return found


def measure(
    head: str, engines: list[str], folder: Path, queries: int, rounds: int
) -> tuple[list[Measured], list[Built]]:
    """Build, open and time the engines on one head."""
    loaded = load(head, folder)
    engines = [name for name in engines if _suits(name, head)]
    right = truth(loaded, K, queries, folder / f"{head}-truth-{queries}.npy")
    reports = build(head, engines, folder)
    series: list[Series] = []
    built: list[Built] = []
    with contextlib.ExitStack() as stack:
        for name in engines:
            for threads in ENGINES[name].threads:
                remote = stack.enter_context(Remote(name, head, folder, threads))
                opened = remote.ask("open")
                if threads == 1:
                    figures = {**reports[name], **opened}
                    built.append(Built(head, name, **figures, weight_bytes=loaded.weight.nbytes))
                stderr.print(f"{head}: recall of {name}, {threads} threads")
                # A scan of all rows errs seldom and takes long: fewer queries do.
                count = queries if ENGINES[name].approximate else queries // 4
                for point in remote.ask("points"):
                    recall = remote.ask("recall", point=point, right=str(right), count=count)
                    series += [
                        Series(remote, name, threads, point, batch, recall) for batch in (1, 64)
                    ]
        for number in range(rounds):
            stderr.print(f"{head}: round {number + 1} of {rounds}")
            _round(series, number)
    rows = [
        Measured(
            head,
            one.engine,
            one.threads,
            ", ".join(f"{key} {value}" for key, value in one.point.items()),
            one.batch,
            round(statistics.median(one.ms), 4),
            **{key: round(value, 4) for key, value in one.recall.items()},
        )
        for one in series
    ]
    return rows, built


def _suits(engine: str, head: str) -> bool:
    heads = ENGINES[engine].heads
    return heads is None or head in heads


def _round(series: list[Series], number: int) -> None:
    """Time every setting once; the order changes from round to round."""
    last = None
    for one in series if number % 2 == 0 else reversed(series):
        if one.remote is not last:
            time.sleep(PAUSE)
            last = one.remote
        calls = 16 if one.batch == 1 else 3
        if one.ms and statistics.median(one.ms) > SLOW:
            calls = 4 if one.batch == 1 else 2
        request = {"point": one.point, "batch": one.batch, "calls": calls, "seed": number}
        one.ms += one.remote.ask("time", **request)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small head, fewer rounds")
    parser.add_argument("--heads", nargs="+", choices=NAMES, default=["w670", "w200", "geonames"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--folder", type=Path, help="where heads and indexes are kept")
    parser.add_argument("--build", action="store_true", help="build only, measure nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the frontier to this PNG file")
    options = parser.parse_args()
    heads, queries, rounds = options.heads, 2_048, options.rounds
    if options.quick:
        heads, queries, rounds = ["w20"], 512, 3
    folder = options.folder or Path(tempfile.gettempdir(), "qcompile-heads")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    absent = [name for name in options.engines if missing(ENGINES[name])]
    engines = [name for name in options.engines if name not in absent]
    for name in absent:
        print(f"left out: {name}, because {ENGINES[name].package} is not installed")
    rows: list[Measured] = []
    built: list[Built] = []
    for head in heads:
        if options.build:
            load(head, folder)
            build(head, [name for name in engines if _suits(name, head)], folder)
            continue
        some, indexes = measure(head, engines, folder, queries, rounds)
        rows += some
        built += indexes
    if options.build:
        return 0
    console = Console(width=120 if not sys.stdout.isatty() else None)
    for head in heads:
        console.print(draw(rows, head))
    console.print(draw_built(built))
    exported = others.small() + ([] if options.quick else others.recogniser())
    for row in exported:
        print(f"{row.model}, {row.part}: {row.before_ms:.4f} → {row.after_ms:.4f} ms")
    results = bars(rows, built) + others.bars(exported)
    for bar in results:
        verdict = "ok" if bar["ok"] else "FAILED"
        print(f"{verdict:<6} {bar['name']}: {bar['value']} (at least {bar['target']})")
    if options.plot is not None:
        plot(rows, options.plot)
    packages = [name for name in PACKAGES if _installed(name)]
    status = record(options.json, packages, [*rows, *built, *exported], results)
    return 0 if options.quick else status


def _installed(distribution: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
