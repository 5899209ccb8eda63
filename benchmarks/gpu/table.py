"""Rows of figures, what is asked of them, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from gpu.linear import COMPILED, OURS
from gpu.timing import Result

__all__ = ["FORWARD", "TRAINING", "Row", "bars", "rows_of", "show"]

FORWARD, TRAINING = "forward", "forward + backward"
LINEAR, ELEMENTWISE, BLOCK, NETWORK = "linear", "elementwise", "block", "network"

SMALL_K, MIDDLE_K = 256, (512, 768)
TABLE_FORM = "Quadra"
"""The form whose shapes the speed-ups at small and middle K are asked of."""


@dataclass(frozen=True)
class Row:
    """One contestant's figures.

    Args:
        part: of the benchmark.
        case: what is computed.
        size: of it; M, K, N for linear layers.
        passes: :data:`FORWARD` or :data:`TRAINING`.
        contestant: who computes it.
        ms: median time; ``None`` where it failed.
        peak_mib: most memory beyond inputs and parameters.
        floor_ms: what the device's measured rates allow at best.
        share: floor / time.
        error: why it failed.
    """

    part: str
    case: str
    size: tuple[int, ...]
    passes: str
    contestant: str
    ms: float | None
    peak_mib: float | None
    floor_ms: float | None
    share: float | None
    error: str

    @property
    def about(self) -> tuple[Any, ...]:
        """What rows to be compared have in common."""
        return self.part, self.case, tuple(self.size), self.passes


def rows_of(
    about: tuple[str, str, tuple[int, ...], str],
    results: Mapping[str, Result],
    floor_ms: float | None = None,
) -> list[Row]:
    """Return a row for each contestant, with its share of the roofline where there is a floor."""
    rows = []
    for contestant, result in results.items():
        share = round(floor_ms / result.ms, 3) if floor_ms and result.ms else None
        ms = None if result.ms is None else round(result.ms, 4)
        floor = None if floor_ms is None else round(floor_ms, 4)
        rows.append(Row(*about, contestant, ms, result.peak_mib, floor, share, result.error))
    return rows


def _compared(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Group the rows of one call by contestant."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(row.about, {})[row.contestant] = row
    return groups


def _fastest(rows: Mapping[str, Row], names: Iterable[str]) -> Row | None:
    timed = [rows[name] for name in names if name in rows and rows[name].ms]
    return min(timed, key=lambda row: row.ms or 0, default=None)


def _speed_up(rows: Mapping[str, Row]) -> float | None:
    """Return how much faster ours is than the faster torch.compile; 0 if ours has failed.

    Where torch.compile fails there is nothing to compare with, hence ``None``.
    """
    ours, theirs = _fastest(rows, [OURS]), _fastest(rows, COMPILED)
    if ours is None or not ours.ms:
        return 0.0
    return None if theirs is None else (theirs.ms or 0.0) / ours.ms


def bars(rows: list[Row]) -> list[dict[str, Any]]:
    """Compare with what is asked for, as far as it has been measured."""
    groups = _compared(rows)
    found: list[dict[str, Any]] = []

    def ask(name: str, values: list[float | None], target: float) -> None:
        known = [value for value in values if value is not None]
        value = min(known, default=None)
        if values:
            found.append(_bar(name, value, target, value is not None and value >= target))

    for passes in (FORWARD, TRAINING):
        linear = [
            (about[1], about[2][1], _speed_up(group))
            for about, group in groups.items()
            if about[0] == LINEAR and about[3] == passes
        ]
        asked = [(k, value) for form, k, value in linear if form == TABLE_FORM]
        small = [value for k, value in asked if k <= SMALL_K]
        middle = [value for k, value in asked if MIDDLE_K[0] <= k <= MIDDLE_K[1]]
        what = f"{passes}: least speed-up over torch.compile"
        ask(f"{what}, K ≤ {SMALL_K}", small, 2.0)
        ask(f"{what}, K {MIDDLE_K[0]} to {MIDDLE_K[1]}", middle, 1.2)
        ask(f"{what}, all layers", [value for *_, value in linear], 0.98)
    for part, name, target in (
        (ELEMENTWISE, "element-wise", 0.85),
        (LINEAR, "products, forward", 0.70),
    ):
        shares = [
            row.share or 0.0
            for row in rows
            if row.part == part
            and row.contestant == OURS
            and row.floor_ms
            and (part == ELEMENTWISE or row.passes == FORWARD)
        ]
        ask(f"least share of the roofline, {name}", [*shares], target)
    return found + _network_bars(groups)


def _network_bars(groups: Mapping[tuple[Any, ...], Mapping[str, Row]]) -> list[dict[str, Any]]:
    """Compare the fastest of our training steps of QVGG-7 with torch.compile's."""
    found = []
    for about, group in groups.items():
        if about[0] != NETWORK:
            continue
        ours = _fastest(group, [name for name in group if name.startswith(OURS)])
        theirs = _fastest(group, COMPILED)
        if theirs is None or not theirs.ms or not theirs.peak_mib:
            continue
        speed_up = theirs.ms / ours.ms if ours and ours.ms else 0.0
        peak = (ours.peak_mib or 0) / theirs.peak_mib if ours else float("inf")
        of = f"{about[1]}, {ours.contestant if ours else OURS}"
        found.append(_bar(f"{of}: speed-up over torch.compile", speed_up, 1.3, speed_up >= 1.3))
        found.append(_bar(f"{of}: peak / torch.compile's", peak, 1.0, peak < 1.0))
    return found


def _bar(name: str, value: float | None, target: float, ok: bool) -> dict[str, Any]:
    rounded = None if value is None else round(value, 3)
    return {"name": name, "value": rounded, "target": target, "ok": ok}


def show(rows: list[Row], comparisons: list[dict[str, Any]]) -> None:
    """Print a table for each call, and the bars."""
    console = Console(width=130)
    for about, group in _compared(rows).items():
        size = " × ".join(str(number) for number in about[2])
        table = Table(title=f"{about[1]}, {size}, {about[3]}", title_justify="left")
        for column in ("contestant", "ms", "peak MiB", "share of the roofline", "against compiled"):
            table.add_column(column, justify="left" if column == "contestant" else "right")
        theirs = _fastest(group, COMPILED)
        for row in group.values():
            ratio = theirs.ms / row.ms if theirs and theirs.ms and row.ms else None
            cells = [
                f"{row.ms:.4f}" if row.ms else row.error[:40],
                "" if row.peak_mib is None else f"{row.peak_mib:,.1f}",
                "" if row.share is None else f"{row.share:.0%}",
                "" if ratio is None else f"{ratio:.2f}",
            ]
            table.add_row(row.contestant, *cells)
        console.print(table)
    for bar in comparisons:
        mark = "ok" if bar["ok"] else "FAILED"
        console.print(f"{mark}: {bar['name']} {bar['value']}, target {bar['target']}")
