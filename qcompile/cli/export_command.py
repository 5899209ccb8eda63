"""``qcompile export``: one ONNX file, verified before it gets its name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.cli.calibration_table import recall_figures
from qcompile.cli.output import print_json, print_pairs, print_report, progress_bar
from qcompile.cli.sources import example_inputs
from qcompile.config import LSH

if TYPE_CHECKING:
    from qcompile.exporter import ExportResult
    from qcompile.exporter.progress import Progress


def run(options: argparse.Namespace) -> int:
    """Export and print what was done and measured."""
    with progress_bar(f"exporting {options.source} …") as progress:
        if options.triton_repository is None:
            result = _export(options, options.output, progress)
        else:
            result = _export_repository(options, progress)
    if options.json:
        print_json(result.to_dict())
    else:
        print_report(result.report)
        print_pairs(_figures(result))
    return 0


def _figures(result: ExportResult) -> dict[str, Any]:
    before, after = result.size
    figures: dict[str, Any] = {"written": result.path}
    if result.data_path is not None:
        figures["weights"] = result.data_path
    figures["bytes"] = f"{before:,} → {after:,}"
    for what, (slow, fast) in result.latency.items():
        figures[f"latency of the {what}"] = (
            f"{slow:.3f} → {fast:.3f} ms ({slow / fast:.2f} times as fast)"
        )
    for name, choice in result.choices.items():
        figures |= recall_figures(name, choice.to_dict())
    if result.max_difference is not None:
        figures["largest difference"] = f"{result.max_difference:.2g}"
    return figures


def _export_repository(options: argparse.Namespace, progress: Progress) -> ExportResult:
    from qcompile.errors import ConfigurationError
    from qcompile.exporter.triton import export_to_triton

    if options.output is not None:
        raise ConfigurationError(
            "-o and --triton-repository name two places for one model; leave one out."
        )
    return export_to_triton(
        lambda path: _export(options, path, progress),
        options.triton_repository,
        default_output(options.source).name.removesuffix(".qcompile.onnx"),
        root=options.triton_root,
    )


def _export(
    options: argparse.Namespace, output: str | Path | None, progress: Progress
) -> ExportResult:
    is_onnx = options.source.lower().endswith(".onnx")
    return (_export_file if is_onnx else _export_torch)(options, output, progress)


def _export_file(
    options: argparse.Namespace, output: str | Path | None, progress: Progress
) -> ExportResult:
    from qcompile.exporter import export_onnx

    return export_onnx(
        options.source,
        output,
        top_k=options.top_k,
        min_outputs=options.min_outputs,
        node=options.node,
        inputs=options.inputs,
        recall=options.recall,
        calibration=options.calibrate,
        batch=options.batch,
        guard=options.guard,
        seed=options.seed,
        mode=options.mode,
        lsh=_tables(options),
        rescore=options.rescore,
        progress=progress,
    )


def _export_torch(
    options: argparse.Namespace, output: str | Path | None, progress: Progress
) -> ExportResult:
    from qcompile.exporter import export
    from qcompile.exporter.reading import load_source

    return export(
        load_source(options.source, allow_pickle=options.allow_pickle),
        output or default_output(options.source),
        example_inputs(options.input),
        top_k=options.top_k,
        min_outputs=options.min_outputs,
        node=options.node,
        recall=options.recall,
        calibration=options.calibrate,
        batch=options.batch,
        guard=options.guard,
        seed=options.seed,
        mode=options.mode,
        lsh=_tables(options),
        rescore=options.rescore,
        progress=progress,
    )


def _tables(options: argparse.Namespace) -> LSH | None:
    """Return the hash tables that were asked for, or None where nothing was said of them."""
    said = {name: getattr(options, name) for name in ("family", "tables", "hashes", "bucket")}
    given = {name: value for name, value in said.items() if value is not None}
    return LSH(**given) if given else None


def default_output(source: str) -> Path:
    """Return ``model.qcompile.onnx`` for a file, ``callable.qcompile.onnx`` for a callable."""
    path = Path(source.rpartition(":")[2] if ":" in source else source)
    return path.with_suffix(".qcompile.onnx")
