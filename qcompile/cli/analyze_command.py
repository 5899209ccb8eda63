"""``qcompile analyze``: what a network's layers return, weigh and, with labels, learn."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.cli.output import print_json, progress_console, result_console
from qcompile.cli.sources import example_inputs
from qcompile.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from qcompile.analysis import Analysis

_LABELS = "labels"


def run(options: argparse.Namespace) -> int:
    """Analyze a model on given or random inputs and print the table."""
    import torch

    from qcompile.analysis import analyze
    from qcompile.exporter.reading import load_source

    model = load_source(options.source, allow_pickle=options.allow_pickle)
    if not isinstance(model, torch.nn.Module):
        raise ConfigurationError(
            f"{options.source}: an exported program has no layers to watch; name the module itself."
        )
    batches, labelled = _batches(options)
    with progress_console().status(f"running {options.source} …"):
        loss = torch.nn.functional.cross_entropy if labelled else None
        analysis = analyze(model, batches, loss=loss, limit=options.limit)
    written = {}
    if options.html:
        written["html"] = str(analysis.write_html(options.html))
    if options.tensorboard:
        written["tensorboard"] = str(analysis.write_tensorboard(options.tensorboard))
    if options.json:
        print_json({**analysis.to_dict(), "written": written})
        return 0
    _print(analysis)
    for path in written.values():
        result_console().print(f"written: {path}", markup=False)
    return 0


def _batches(options: argparse.Namespace) -> tuple[Iterator[Any], bool]:
    """Return the batches and whether they carry labels."""
    if options.data is None:
        inputs = example_inputs(options.input)
        if inputs is None:
            raise ConfigurationError("give inputs: --data FILE.npz, or --input SHAPE for random.")
        return iter([inputs]), False
    import torch

    from qcompile.calibration.queries import load

    if options.batch < 1:
        raise ConfigurationError(f"--batch is {options.batch}, expected at least 1.")
    arrays = load(Path(options.data))
    labels = arrays.pop(_LABELS, None)
    lengths = {len(array) for array in [*arrays.values(), *([] if labels is None else [labels])]}
    if len(lengths) != 1 or not arrays:
        raise DataError(
            f"{options.data}: expected arrays of one length, an input each, and perhaps "
            f"{_LABELS!r}; found {', '.join(f'{n} {list(a.shape)}' for n, a in arrays.items())}."
        )
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    rows = range(0, lengths.pop(), options.batch)
    if labels is None:
        return (tuple(t[i : i + options.batch] for t in tensors) for i in rows), False
    targets = torch.from_numpy(labels)
    pairs = (
        (tuple(t[i : i + options.batch] for t in tensors), targets[i : i + options.batch])
        for i in rows
    )
    return pairs, True


def _print(analysis: Analysis) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in ("layer", "type"):
        table.add_column(heading, overflow="fold")
    for heading in ("mean", "std", "largest", "zeros", "quadratic share", "dead", "exploding"):
        table.add_column(heading, justify="right")
    for layer in analysis.layers:
        share = layer.quadratic_share
        table.add_row(
            layer.name or "(the model itself)",
            f"{layer.kind} {layer.form or ''}".strip(),
            *(f"{x:.3g}" for x in (layer.output.mean, layer.output.std, layer.output.largest)),
            f"{layer.output.zeros:.0%}",
            "" if share is None else f"{share:.3g}",
            f"{layer.dead} / {layer.units}" if layer.dead else "",
            f"{layer.exploding} / {layer.units}" if layer.exploding else "",
        )
    console = result_console()
    console.print(table, markup=False)
    for remark in analysis.remarks:
        console.print(f"note: {remark}", markup=False)
