"""A promised recall against the recall on inputs that calibration has not seen.

Each head is exported as `qcompile export --recall R --calibrate FILE` does it, with half of
its vectors; the file then answers the other half, and its answers are compared with those of
float64. Run from anywhere::

    python benchmarks/promised_recall.py [--quick] [--heads w670 w200 geonames] [--recalls R …]
        [--guard G] [--folder FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from recording import record
from retrieval import graphs
from retrieval.engine import K
from retrieval.heads import Head, truth
from retrieval.load import NAMES, load
from rich.console import Console
from rich.table import Table

import qcompile
from qcompile.exporter import ExportResult, export_onnx

CALLS = 1000  # whose median is the time of a call


@dataclass(frozen=True)
class Row:
    """One promise.

    Args:
        promised: recall@10 asked for.
        mode: what calibration chose.
        settings: its attributes.
        calibrated: mean recall@10 on the calibration vectors that judged.
        bound: its lower bound, one-sided 95 %.
        fresh: mean recall@10 on vectors that calibration has not seen.
        fresh_1: mean recall@1 on them.
        queries: how many of them.
        ms: median of a call with one vector, one thread.
        exact_ms: the same, exact.
        search_s: seconds that the export took.
    """

    head: str
    promised: float
    mode: str
    settings: str
    calibrated: float
    bound: float
    fresh: float
    fresh_1: float
    queries: int
    ms: float
    exact_ms: float
    search_s: float


def promise(head: Head, source: Path, recall: float, guard: float, folder: Path) -> Row:
    """Export with a promised recall and measure what the file does on fresh vectors."""
    began = time.perf_counter()
    result = export_onnx(
        source,
        folder / "promised.onnx",
        recall=recall,
        calibration={"hidden": np.asarray(head.calibration)},
        guard=guard,
        verify=False,
        measure=False,
    )
    seconds = time.perf_counter() - began
    (choice,) = result.choices.values()
    exact = export_onnx(source, folder / "exact.onnx", verify=False, measure=False)
    found, milliseconds, exact_milliseconds = _serve(result, exact, np.asarray(head.queries))
    right = np.load(truth(head, K, len(head.queries), folder / "truth.npy"))
    hits = (found[:, :, None] == right[:, None, :]).any(axis=1)
    return Row(
        head.name,
        recall,
        choice.index.mode,
        ", ".join(f"{key} {value}" for key, value in choice.index.attributes.items()),
        round(choice.recall.mean, 4),
        round(choice.recall.bound, 4),
        round(float(hits.mean()), 4),
        round(float(hits[:, 0].mean()), 4),
        len(found),
        round(milliseconds, 4),
        round(exact_milliseconds, 4),
        round(seconds, 1),
    )


def _serve(
    result: ExportResult, exact: ExportResult, queries: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Return the ids of all queries, and the median milliseconds of both files, in turns."""
    options = qcompile.session_options()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(r.path), options) for r in (result, exact)]
    ids = sessions[0].run(None, {"hidden": queries})[1]
    times: list[list[float]] = [[], []]
    for first in range(0, min(CALLS, len(queries)), 50):
        for session, taken in zip(sessions, times, strict=True):
            for query in queries[first : first + 50]:
                began = time.perf_counter()
                session.run(None, {"hidden": query[None]})
                taken.append(1e3 * (time.perf_counter() - began))
    return ids, statistics.median(times[0]), statistics.median(times[1])


def draw(rows: list[Row]) -> Table:
    """Lay out promised against measured."""
    table = Table(title="recall@10: promised, shown by calibration, found on fresh vectors")
    for heading in ("head", "promised", "mode", "calibrated (bound)", "fresh", "recall@1"):
        table.add_column(heading)
    for heading in ("ms", "exact ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.head,
            f"{row.promised}",
            f"{row.mode} ({row.settings})" if row.settings else row.mode,
            f"{row.calibrated:.4f} ({row.bound:.4f})",
            f"{row.fresh:.4f}",
            f"{row.fresh_1:.4f}",
            f"{row.ms:.4f}",
            f"{row.exact_ms:.4f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small head")
    parser.add_argument("--heads", nargs="+", choices=NAMES, default=["w670", "w200", "geonames"])
    parser.add_argument("--recalls", nargs="+", type=float, default=[0.9, 0.95, 0.99])
    parser.add_argument("--guard", type=float, default=0.0, help="as of qcompile export")
    parser.add_argument("--folder", type=Path, help="where heads are kept")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    kept = (options.folder or Path(tempfile.gettempdir(), "qcompile-heads")).absolute()
    kept.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in ["w20"] if options.quick else options.heads:
        head = load(name, kept)
        with tempfile.TemporaryDirectory(dir=kept) as folder:
            source = Path(folder) / "dense.onnx"
            graphs.write(graphs.FLOAT, head, K, source)
            for recall in options.recalls:
                rows.append(promise(head, source, recall, options.guard, Path(folder)))
    Console(width=160 if not sys.stdout.isatty() else None).print(draw(rows))
    bars = [
        {
            "name": f"{row.head}, {row.promised}: recall on fresh vectors less promised",
            "value": round(row.fresh - row.promised, 4),
            "target": -_noise(row),
            "ok": row.fresh - row.promised >= -_noise(row),
        }
        for row in rows
    ]
    return record(options.json, ("onnxruntime", "numpy"), rows, bars)


def _noise(row: Row) -> float:
    """Return two standard errors of the mean of so many queries, at most."""
    return round(2 * (row.promised * (1 - row.promised) / row.queries) ** 0.5, 4)


if __name__ == "__main__":
    sys.exit(main())
