"""An analysis as one HTML page that needs nothing besides itself."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.analysis.result import Analysis, LayerReport, Maps
from qcompile.analysis.tally import EDGES, Distribution
from qcompile.errors import ConfigurationError

__all__ = ["write_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, td:nth-child(2) { text-align: left; }
h1, h2, h3 { font-weight: 600; } .wrong { color: #b00020; } img { max-width: 100%; }
"""
_HEADINGS = (
    *("layer", "type", "mean", "std", "largest", "zeros"),
    *("quadratic share", "dead units", "exploding units"),
)
_TERM_COLOURS = {"output": "0.45", "term quadratic": "tab:red", "term first-order": "tab:blue"}


def write_page(analysis: Analysis, path: Path) -> Path:
    """Write the page under a temporary name first; see :meth:`Analysis.write_html`."""
    pictures = _pictures(analysis)
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{_text(analysis.model)}</title>",
        f"<style>{_STYLE}</style><h1>{_text(analysis.model)}</h1>",
        f"<p>{len(analysis.layers)} layers, {analysis.batches} batches.</p>",
        _remarks(analysis.remarks),
        _table(analysis.layers),
        *pictures,
    ]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text("\n".join(parts), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}.") from error
    return path


def _remarks(remarks: Iterable[str]) -> str:
    lines = "".join(f"<li class=wrong>{_text(remark)}</li>" for remark in remarks)
    return f"<ul>{lines}</ul>" if lines else "<p>Nothing stands out.</p>"


def _table(layers: Iterable[LayerReport]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    rows = []
    for layer in layers:
        share = "" if layer.quadratic_share is None else f"{layer.quadratic_share:.3g}"
        cells = (
            _text(layer.name or "(the model itself)"),
            _text(f"{layer.kind} {layer.form or ''}".strip()),
            *(f"{x:.3g}" for x in (layer.output.mean, layer.output.std, layer.output.largest)),
            f"{layer.output.zeros:.0%}",
            share,
            f"{layer.dead} / {layer.units}" if layer.dead else "",
            f"{layer.exploding} / {layer.units}" if layer.exploding else "",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _pictures(analysis: Analysis) -> list[str]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "the HTML page needs matplotlib: python -m pip install 'torch-qcompile[analysis]'. "
            f"({error})"
        ) from error
    found = []
    if analysis.maps:
        found.append("<h2>First-order and quadratic activation maps</h2>")
        found += [_maps(each, Figure) for each in analysis.maps]
    found.append("<h2>Distributions</h2>")
    found += [_distributions(layer, Figure) for layer in analysis.layers]
    return found


def _maps(maps: Maps, figure: Any) -> str:
    """Show input, terms and output of one example side by side, each on its own scale."""
    named = {"input": maps.input, **{f"{n} term": m for n, m in maps.terms.items()}}
    named["output"] = maps.output
    drawn = figure(figsize=(3 * len(named), 3), layout="constrained")
    for place, (name, values) in enumerate(named.items()):
        axes = drawn.add_subplot(1, len(named), place + 1)
        shown = axes.imshow(np.asarray(values), cmap="viridis")
        axes.set(title=name, xticks=[], yticks=[])
        drawn.colorbar(shown, ax=axes, shrink=0.8)
    return f"<h3>{_text(maps.layer)}</h3>{_image(drawn, f'activation maps of {maps.layer}')}"


def _distributions(layer: LayerReport, figure: Any) -> str:
    """Show outputs with terms, weights and gradients in one row."""
    found = layer.distributions
    groups = [
        {n: d for n, d in found.items() if n in _TERM_COLOURS},
        {n: d for n, d in found.items() if n.startswith("weight")},
        {n: d for n, d in found.items() if n.startswith("gradient")},
    ]
    groups = [group for group in groups if any(d.count for d in group.values())]
    if not groups:
        return ""
    drawn = figure(figsize=(4.2 * len(groups), 2.4), layout="constrained")
    for place, group in enumerate(groups):
        axes = drawn.add_subplot(1, len(groups), place + 1)
        for number, (name, distribution) in enumerate(group.items()):
            _steps(axes, name, distribution, _TERM_COLOURS.get(name, f"C{number}"))
        axes.set_title(next(iter(group)).split()[0] + "s", fontsize=8)
        axes.set_xscale("symlog", linthresh=1e-6, linscale=0.3)
        axes.set_yticks([])
        axes.set_xticks([-1e3, -1, -1e-3, 0, 1e-3, 1, 1e3])
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False)
    name = layer.name or "(the model itself)"
    title = f"{name} ({layer.kind}{f' {layer.form}' if layer.form else ''})"
    return f"<h3>{_text(title)}</h3>{_image(drawn, f'distributions of {name}')}"


def _steps(axes: Any, name: str, found: Distribution, colour: str) -> None:
    """Draw the share of values in each bin, a decade having five."""
    if not found.count:
        return
    inner = np.asarray(found.bins[1:-1]) / found.count
    label = name.rpartition(" ")[2] if name.startswith(("weight", "gradient")) else name
    axes.stairs(inner, EDGES.numpy(), label=label, color=colour)


def _image(drawn: Any, alternative: str) -> str:
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=100)
    code = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{_text(alternative)}" src="data:image/png;base64,{code}">'


def _text(value: str) -> str:
    return html.escape(value, quote=True)
