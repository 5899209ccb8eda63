"""Tables and bars of the rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from accuracy.conversion import CLASSES, Conversion
from accuracy.fine_tuning import FORMS as TUNED
from accuracy.forms import FIRST_ORDER
from accuracy.learning import Row
from accuracy.networks import PAIRS
from accuracy.search import SearchStep
from qcompile.config import FORMS

__all__ = ["bars", "draw"]

_WITHIN = 1.0
"""Points by which a form may be below the first-order neuron."""
_ONNX = 1e-5
"""Share of the largest score by which onnxruntime may differ from torch."""


def draw(part: str, rows: Sequence[Any]) -> Table:
    """Lay out the rows of one part: of runs a line a network, of others a line a row."""
    if part == "conversion":
        return _draw_conversions(rows)
    if part == "search":
        return _draw_steps(rows)
    table = Table(title=part)
    seeds = sorted({row.seed for row in rows})
    headings = ("parameters", "MFLOP", "accuracy %", "±", *(f"seed {s}" for s in seeds), "CPU s")
    table.add_column("network")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(row.network for row in rows):
        runs = [row for row in rows if row.network == name]
        found = _percent(runs)
        spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else ""
        table.add_row(
            name,
            f"{runs[0].parameters:,}",
            f"{runs[0].flops / 1e6:.2f}",
            f"{statistics.mean(found):.2f}",
            spread,
            *(f"{value:.2f}" for value in found),
            f"{statistics.mean(row.seconds for row in runs):.0f}",
        )
    return table


def _draw_conversions(rows: Sequence[Conversion]) -> Table:
    table = Table("form", "layers", "parameters", "largest difference", "in onnxruntime", "found")
    for row in rows:
        table.add_row(
            row.form,
            str(row.layers),
            f"{row.parameters_before:,} → {row.parameters_after:,}",
            f"{row.difference:g}",
            f"{row.onnx_difference:.1e}",
            ", ".join(map(str, row.found)),
        )
    return table


def _draw_steps(rows: Sequence[SearchStep]) -> Table:
    table = Table("step", "layer", "parameters", "MFLOP", "accuracy", "kept", title="search")
    for row in rows:
        size = f"{row.parameters:,}", f"{row.flops / 1e6:.2f}"
        kept = "yes" if row.kept else row.note
        table.add_row(row.action, row.layer, *size, f"{row.metric:.4f}", kept)
    return table


def bars(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Judge the rows that there are."""
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if isinstance(row, Row):
            runs.setdefault((row.part, row.network), []).append(row)
    found = [
        _networks(*(runs["networks", name] for name in pair))
        for pair in PAIRS
        if ("networks", pair[0]) in runs
    ]
    for form in FORMS:
        if ("forms", form) in runs:
            points = _points(runs["forms", form], runs["forms", FIRST_ORDER])
            name = f"{form}: points above the first-order neuron"
            found.append(_bar(name, points, -_WITHIN, points >= -_WITHIN))
    for form in TUNED[1:]:
        if ("fine-tuning", form) in runs:
            points = _points(runs["fine-tuning", form], runs["fine-tuning", TUNED[0]])
            name = f"points that {form} adds to fine-tuning"
            found.append(_bar(name, points, 0.0, points >= 0))
    for row in rows:
        if isinstance(row, Conversion):
            right = row.found == list(CLASSES) and row.onnx_difference <= _ONNX
            name = f"EfficientNet-Lite0 as {row.form}: largest difference"
            found.append(_bar(name, row.difference, 0.0, row.difference == 0 and right))
    return found


def _networks(quadratic: list[Row], first_order: list[Row]) -> dict[str, Any]:
    points = _points(quadratic, first_order)
    fewer = quadratic[0].parameters < first_order[0].parameters
    name = (
        f"{quadratic[0].network} ({quadratic[0].parameters:,} parameters): points above "
        f"{first_order[0].network} ({first_order[0].parameters:,})"
    )
    return _bar(name, points, 0.0, points >= 0 and fewer)


def _bar(name: str, value: float, target: float, ok: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "target": target, "ok": ok}


def _percent(rows: Sequence[Row]) -> list[float]:
    return [100 * row.accuracy for row in rows]


def _points(rows: Sequence[Row], others: Sequence[Row]) -> float:
    return round(statistics.mean(_percent(rows)) - statistics.mean(_percent(others)), 2)
