"""What was measured: rows, the frontier of each engine, bars, a table and a plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

__all__ = ["Built", "Measured", "bars", "cheapest", "draw", "draw_built", "plot"]

OURS, EXACT, CELLS = "qcompile", "qcompile exact", "qcompile cells"
HALF = "qcompile exact, bf16"
DENSE, RESCORED = "onnxruntime fp32", "onnxruntime int8, rescored"
TRAINED = "geonames"
BARS = ("w670", TRAINED, "w20")  # heads that have to reach something
LIMITS = (("recall_1", 0.95), ("recall_1", 0.99), ("recall_1", 0.995), ("recall_10", 0.95))


@dataclass(frozen=True)
class Built:
    """One index.

    Args:
        build_cpu_s: processor seconds of making it from the arrays in memory.
        build_s: the same by the clock, with all processors.
        bytes: of the files, weights included.
        open_s: seconds from the files to the first session or index.
        resident_bytes: what the process grew by until it had answered 256 queries.
        weight_bytes: of the fp32 weights.
    """

    head: str
    engine: str
    build_cpu_s: float
    build_s: float
    bytes: int
    open_s: float
    resident_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class Measured:
    """Median milliseconds of one call, whole batch, and recall against exact answers."""

    head: str
    engine: str
    threads: int
    point: str
    batch: int
    ms: float
    recall_1: float
    recall_10: float


def cheapest(
    rows: Iterable[Measured], kind: str = "recall_1", least: float = 0.0, **where: Any
) -> Measured | None:
    """Return the fastest row of those that match and recall enough."""
    fitting = [
        row
        for row in rows
        if getattr(row, kind) >= least and all(getattr(row, k) == v for k, v in where.items())
    ]
    return min(fitting, key=lambda row: row.ms, default=None)


def draw(rows: list[Measured], head: str) -> Table:
    """Lay out the cheapest point of each engine for each recall."""
    table = Table(title=f"{head}: milliseconds of a call at batch 1 / 64, cheapest point")
    table.add_column("engine")
    table.add_column("threads", justify="right")
    for kind, least in LIMITS:
        table.add_column(f"{kind.replace('_', '@')} ≥ {least}", justify="right")
    table.add_column("best recall@1", justify="right")
    mine = [row for row in rows if row.head == head]
    for engine, threads in dict.fromkeys((row.engine, row.threads) for row in mine):
        own = [row for row in mine if (row.engine, row.threads) == (engine, threads)]
        cells = []
        for kind, least in LIMITS:
            found = [cheapest(own, kind, least, batch=batch) for batch in (1, 64)]
            cells.append(" / ".join(f"{row.ms:.3g}" if row else "-" for row in found))
        table.add_row(engine, str(threads), *cells, f"{max(row.recall_1 for row in own):.4f}")
    return table


def draw_built(built: list[Built]) -> Table:
    """Lay out what building and opening took."""
    table = Table(title="indexes", caption="resident: growth of the process until 256 answers")
    for name in ("head", "engine", "build CPU s", "build s", "MB on disk", "open s", "resident MB"):
        table.add_column(name, justify="left" if name in ("head", "engine") else "right")
    for one in built:
        figures = (f"{one.build_cpu_s:.2f}", f"{one.build_s:.2f}", f"{one.bytes / 1e6:.0f}")
        rest = (f"{one.open_s:.3f}", f"{one.resident_bytes / 1e6:.0f}")
        table.add_row(one.head, one.engine, *figures, *rest)
    return table


def bars(rows: list[Measured], built: list[Built]) -> list[dict[str, Any]]:
    """Hold ours against the others; a ratio says how many times as fast ours is."""
    found: list[dict[str, Any]] = []

    def bar(name: str, slow: float | None, fast: float | None, target: float) -> None:
        if slow is not None and fast:
            value = round(slow / fast, 2)
            found.append({"name": name, "value": value, "target": target, "ok": value >= target})

    def ms(kind: str = "recall_1", least: float = 0.0, **where: Any) -> float | None:
        row = cheapest(rows, kind, least, **where)
        return None if row is None else row.ms

    by_name = {(one.head, one.engine): one for one in built}
    for head in (head for head in dict.fromkeys(row.head for row in rows) if head in BARS):
        for batch, dense, rescored, at_99 in ((1, 8, 4, 1.5), (64, 12, 8, 1.3)):
            at = {"head": head, "batch": batch, "threads": 1}
            where = f"{head}, batch {batch}"
            if head != TRAINED:
                exact, int8 = ms(engine=EXACT, **at), ms(engine=RESCORED, **at)
                bar(f"{where}: exact against fp32", ms(engine=DENSE, **at), exact, dense)
                bar(f"{where}: exact against int8, rescored", int8, exact, rescored)
            for peer, kind, least, target in (
                ("ScaNN", "recall_1", 0.99, at_99),
                ("ScaNN", "recall_10", 0.95, 1.0),
                ("hnswlib", "recall_10", 0.95, 1.0),
            ):
                asked = {"kind": kind, "least": least, **at}
                name = f"{where}: cells against {peer}, {kind.replace('_', '@')} ≥ {least}"
                bar(name, ms(engine=peer, **asked), ms(engine=CELLS, **asked), target)
        two = ms(engine=EXACT, head=head, batch=64, threads=2)
        one = ms(engine=EXACT, head=head, batch=64, threads=1)
        bar(f"{head}, batch 64: two threads against one, exact", one, two, 1.7)
        if (head, CELLS) in by_name and (head, "ScaNN") in by_name:
            peer, mine = by_name[head, "ScaNN"].build_cpu_s, by_name[head, CELLS].build_cpu_s
            bar(f"{head}: CPU seconds of building, ScaNN against cells", peer, mine, 5)
        for engine, share in ((EXACT, 1.4), (HALF, 0.7)):
            if (head, engine) not in by_name:
                continue
            one_of = by_name[head, engine]
            name = engine.removeprefix(f"{OURS} ")
            bar(f"{head}: half a second against the start of {name}", 0.5, one_of.open_s, 1)
            allowed = share * one_of.weight_bytes
            what = f"{head}: {share} × fp32 weights against memory of {name}"
            bar(what, allowed, one_of.resident_bytes, 1)
    return found


def plot(rows: list[Measured], file: Path) -> None:
    """Draw recall@1 against milliseconds, one picture for each head and batch."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    heads = list(dict.fromkeys(row.head for row in rows))
    figure, axes = plt.subplots(len(heads), 2, figsize=(13, 4.2 * len(heads)), squeeze=False)
    engines = list(dict.fromkeys(row.engine for row in rows))
    colours = mpl.colormaps["tab20"]
    for head, line in zip(heads, axes, strict=True):
        for batch, place in zip((1, 64), line, strict=True):
            for number, engine in enumerate(engines):
                own = [
                    row
                    for row in rows
                    if (row.head, row.batch, row.engine, row.threads) == (head, batch, engine, 1)
                ]
                edge = [r for r in own if not any(_better(other, r) for other in own)]
                edge.sort(key=lambda row: row.ms)
                place.plot(
                    [row.ms for row in edge],
                    [max(1 - row.recall_1, 2e-4) for row in edge],
                    marker="os^vDP*Xph"[number % 10],
                    color=colours(number % 20),
                    linewidth=2.5 if engine.startswith(OURS) else 1,
                    label=engine,
                )
            place.set(xscale="log", yscale="log", title=f"{head}, batch {batch}, one thread")
            place.set(xlabel="milliseconds of a call", ylabel="missed: 1 − recall@1")
            place.invert_yaxis()
            place.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _better(one: Measured, other: Measured) -> bool:
    return one.ms <= other.ms and one.recall_1 > other.recall_1
