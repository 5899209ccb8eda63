"""``qcompile transform``: substitute layers, report each one, save the result if asked."""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qcompile.cli.output import print_json, print_report, progress_console, result_console
from qcompile.cli.sources import example_inputs, memory_option, quadratic_option, sparse_option
from qcompile.errors import ConfigurationError, ExportError, QCompileWarning

if TYPE_CHECKING:
    from qcompile.report import Report

_ENDINGS = (".safetensors", ".pt2", ".onnx")


def run(options: argparse.Namespace) -> int:
    """Transform and print the report; status 1 where nothing was rewritten."""
    quadratic, sparse_output = quadratic_option(options), sparse_option(options)
    memory = memory_option(options)
    nothing = quadratic is None and sparse_output is None and memory != "auto"
    if nothing and not options.fuse:
        raise ConfigurationError(
            "nothing to do: give --quadratic FORM, --sparse-output or both, --fuse for products of "
            "linear layers, or --memory auto for a model that is quadratic already."
        )
    output = Path(options.output) if options.output else None
    if output is not None and output.suffix not in _ENDINGS:
        raise ConfigurationError(
            f"--output {output}: the ending says what to write; known: {', '.join(_ENDINGS)}."
        )
    with progress_console().status(f"transforming {options.source} …"), warnings.catch_warnings():
        # What it warns of stands in the report, which is printed.
        warnings.simplefilter("ignore", QCompileWarning)
        from qcompile.exporter.reading import load_source
        from qcompile.rewrite import transform

        model = load_source(options.source, allow_pickle=options.allow_pickle)
        inputs = example_inputs(options.input)
        model = transform(
            model,
            quadratic=quadratic,
            sparse_output=sparse_output,
            memory=memory,
            memory_budget=options.memory_budget,
            fuse=options.fuse,
            example_inputs=inputs,
            strict=options.strict,
            inplace=True,
        )
        if output is not None:
            _save(model, output, inputs)
    report = cast("Report", model.qcompile_report)
    if options.json:
        print_json({**report.to_dict(), "output": str(output) if output else None})
    else:
        print_report(report)
        if output is not None:
            result_console().print(f"written: {output}", markup=False)
    return 0 if report.modified or memory == "auto" else 1


def _save(model: Any, output: Path, inputs: tuple[Any, ...] | None) -> None:
    if output.suffix == ".safetensors":
        from safetensors.torch import save_model

        _replace(output, lambda temporary: save_model(model, temporary))
        return
    if inputs is None:
        raise ExportError(
            f"writing {output} traces the model, which needs example inputs: "
            "describe each with --input, for example --input 1x3x224x224."
        )
    if output.suffix == ".onnx":
        from qcompile.exporter import export

        export(model, output, inputs)
        return
    import torch

    program = torch.export.export(model.eval(), inputs)
    _replace(output, lambda temporary: torch.export.save(program, temporary))


def _replace(output: Path, write: Callable[[str], None]) -> None:
    """Write beside ``output``, then rename: a failure leaves what was there before."""
    handle, temporary = tempfile.mkstemp(suffix=output.suffix, dir=output.absolute().parent)
    os.close(handle)
    try:
        write(temporary)
        Path(temporary).replace(output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
