"""``qcompile inspect``: what is in a model, which layers would be rewritten, and why not."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.cli.calibration_table import print_calibration
from qcompile.cli.output import print_json, print_pairs, print_report
from qcompile.cli.sources import example_inputs, quadratic_option, sparse_option
from qcompile.config import LSH, Quadratic

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.report import Report

_METADATA_PREFIX = "qcompile."
_REPORT, _CALIBRATION = f"{_METADATA_PREFIX}report", f"{_METADATA_PREFIX}calibration"


def run(options: argparse.Namespace) -> int:
    """Print facts about the model and what the passes would do; nothing is written."""
    if options.source.lower().endswith(".onnx"):
        facts, report = inspect_onnx(options.source, options.min_outputs)
    else:
        facts, report = _inspect_torch(options)
    if options.json:
        print_json({"model": facts, "would": report.to_dict()})
    else:
        _print(facts)
        print("\nwhat a rewrite would do:")
        print_report(report)
    return 0


def _print(facts: dict[str, Any]) -> None:
    """Lay out the facts; what calibration measured in a table of its own."""
    calibration = facts.get(_CALIBRATION)
    plain = dict(facts)
    if isinstance(calibration, dict):
        del plain[_CALIBRATION]
    rewritten = plain.get(_REPORT)
    if isinstance(rewritten, dict):
        plain[_REPORT] = rewritten.get("summary", rewritten)
    print_pairs(plain)
    if isinstance(calibration, dict):
        print_calibration(calibration)


def inspect_onnx(source: str, min_outputs: int) -> tuple[dict[str, Any], Report]:
    """Return facts about an ONNX file and the report that an export would begin with.

    Raises:
        ExportError: the file cannot be read.
    """
    from qcompile.exporter.onnx_model import no_surprises
    from qcompile.exporter.probing import survive
    from qcompile.exporter.reading import external_files, node_count, read_onnx
    from qcompile.passes.onnx.output_layer import OutputLayer
    from qcompile.passes.onnx.shapes import Shapes

    model = read_onnx(source)
    survive(Path(source), lambda: Shapes(model), node_count(model))
    operators = Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for node in model.graph.all_nodes()
    )
    files = [Path(source), *external_files(model)]
    facts: dict[str, Any] = {
        "file": source,
        "bytes": sum(file.stat().st_size for file in files),
        "producer": f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        "opsets": ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in model.opset_imports.items()),
        "ir_version": model.ir_version,
        "inputs": ", ".join(_signature(value) for value in model.graph.inputs),
        "outputs": ", ".join(_signature(value) for value in model.graph.outputs),
        "parameters": sum(_elements(value) for value in model.graph.initializers.values()),
        "operators": ", ".join(f"{name} × {count}" for name, count in operators.most_common()),
    }
    for name, text in model.metadata_props.items():
        if name.startswith(_METADATA_PREFIX):
            facts[name] = _parsed(text) if name in (_REPORT, _CALIBRATION) else text
    # The rewritten model is dropped: only its report is wanted.
    with no_surprises(Path(source)):
        return facts, OutputLayer(min_outputs=min_outputs)(model).report


def _inspect_torch(options: argparse.Namespace) -> tuple[dict[str, Any], Report]:
    import torch

    from qcompile.exporter.reading import load_source
    from qcompile.rewrite import explain

    model = load_source(options.source, allow_pickle=options.allow_pickle)
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    quadratic, sparse_output = quadratic_option(options), sparse_option(options)
    if quadratic is None and sparse_output is None:
        quadratic, sparse_output = Quadratic(), LSH(min_outputs=options.min_outputs)
    kinds = Counter(type(module).__name__ for module in model.modules())
    facts = {
        "source": options.source,
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "modules": ", ".join(f"{name} × {count}" for name, count in kinds.most_common()),
    }
    inputs = example_inputs(options.input)
    return facts, explain(model, quadratic, sparse_output, example_inputs=inputs)


def _parsed(text: str) -> Any:
    """Return the object that a JSON text holds, or the text itself: it may be anybody's."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _signature(value: ir.Value) -> str:
    shape = "?" if value.shape is None else ", ".join(_dimension(size) for size in value.shape)
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    return f"{value.name} {dtype} [{shape}]"


def _dimension(size: int | ir.SymbolicDim) -> str:
    return str(size) if isinstance(size, int) else str(size.value or "?")


def _elements(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.size)
