"""Prints what calibration measured, from ``Choice.to_dict`` or from a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from qcompile.cli.output import print_pairs, result_console

__all__ = ["print_calibration", "recall_figures"]


def recall_figures(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Lay out what calibration chose for one layer, from ``Choice.to_dict``."""
    figures = {f"search of {name}": f"{told['mode']} {_settings(told)}: {told['reason']}"}
    proof = "" if told["proven"] else ", which the sample is too small to prove"
    figures["recall promised"] = f"{told['promised']}{proof}"
    for recall in told["recall"]:
        figures[f"recall@{recall['at']}"] = _interval(recall)
    if error := told.get("log_error"):
        figures["log probability off by"] = (
            f"{error['median']:.2g} (median), {error['high']:.2g} (99 %), {error['largest']:.2g} "
            f"(largest of {error['queries']:,} queries)"
        )
    for mode, milliseconds in told["milliseconds"].items():
        figures[f"layer alone, {mode}"] = f"{milliseconds:.4f} ms"
    return figures


def print_calibration(layers: Mapping[str, Any]) -> None:
    """Print each layer's choice and every setting that was judged.

    Args:
        layers: ``Choice.to_dict`` by name of the layer; what has another form, since it comes from
            a file of others, is printed as it is.
    """
    for name, told in layers.items():
        try:
            figures, trials = recall_figures(name, told), _trials(told)
        except (AttributeError, KeyError, TypeError, ValueError):
            figures, trials = {f"calibration of {name}": told}, None
        print()
        print_pairs(figures)
        if trials is not None:
            result_console().print(trials, markup=False)


def _trials(told: Mapping[str, Any]) -> Table | None:
    """Return a table of the settings that were judged, or None where there were none."""
    if not told["trials"]:
        return None
    table = Table(box=None, header_style="bold")
    for heading in ("settings judged", "recall@k", "kept", "ms"):
        table.add_column(heading, justify="left" if heading.startswith("settings") else "right")
    for trial in told["trials"]:
        milliseconds = trial["milliseconds"]
        table.add_row(
            _settings(trial),
            _interval(trial["recall"]),
            "yes" if trial["kept"] else "no",
            "" if milliseconds is None else f"{milliseconds:.4f}",
        )
    return table


def _settings(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in told["attributes"].items())


def _interval(recall: Mapping[str, Any]) -> str:
    low, high, queries = recall["low"], recall["high"], recall["queries"]
    return f"{recall['mean']:.4f} ({low:.4f} to {high:.4f}, {queries:,} queries)"
