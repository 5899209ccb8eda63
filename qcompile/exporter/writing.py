"""Writes an ONNX file that appears under its name whole and checked, or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

import qcompile
from qcompile.calibration.choice import Choice
from qcompile.errors import ExportError
from qcompile.exporter.reading import external_files
from qcompile.passes.onnx.replace import Head
from qcompile.report import Report

EXTERNAL_ABOVE = 1_900_000_000
"""Bytes of weights from which they go to a file of their own; protobuf ends at 2 GiB."""

_OLDEST_IR = 9
"""Carries local functions and is read by onnxruntime 1.17."""

_NEWER_TYPES = {
    ir.DataType.INT4: 10,
    ir.DataType.UINT4: 10,
    ir.DataType.FLOAT4E2M1: 11,
}

_RECALL_MEANING = (
    "share of the k best scores that are found; 1.0: the int8 scan keeps every row that its error "
    "bound cannot exclude and scores those in fp32. Without the plugin the local functions compute "
    "all scores in fp32."
)

_ROUNDED = (
    "layers keep their rows rounded, to bfloat16 (bf16) or to eight bits (none), and what is said "
    "of their best scores holds for those of the rounded rows; qcompile.report tells which layers."
)
_MEASURED = (
    "share of the k best scores that are found with the plugin, measured on calibration inputs "
    "that had no part in the search; qcompile.calibration has the intervals. Without the plugin "
    "the local functions compute all scores in fp32, so nothing is missed."
)


class Staging:
    """A folder beside the output in which a file takes shape under its final name.

    Args:
        output: where the file will go.
    """

    def __init__(self, output: Path, folder: Path) -> None:
        self.output = output
        self.path = folder / output.name
        self.data = folder / f"{output.name}.data"

    def publish(self) -> tuple[Path, Path | None]:
        """Move model and data to their place and return both paths."""
        data = None
        if self.data.exists():
            data = self.output.with_name(self.data.name)
            self.data.replace(data)
        self.path.replace(self.output)
        return self.output, data


@contextmanager
def staging(output: Path) -> Iterator[Staging]:
    """Make a folder for the file's making, on the same file system, and remove it afterwards.

    Raises:
        ExportError: the folder of ``output`` does not exist or cannot be written to.
    """
    if output.is_dir():
        raise ExportError(f"{output}: this is a folder; name a file.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ExportError(
            f"{output}: cannot write to {output.parent}: {error.strerror}. Name a folder that "
            "exists and is yours."
        ) from error
    try:
        yield Staging(output, folder)
    except OSError as error:
        raise ExportError(f"{output}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(model: ir.Model, stage: Staging, external_above: int = EXTERNAL_ABOVE) -> None:
    """Write ``model`` to the staging folder; weights that lie in a data file go to one again.

    Args:
        model: what to write.
        stage: where.
        external_above: bytes of weights from which they go to a data file.

    Raises:
        ExportError: the model cannot be serialised.
    """
    external = bool(external_files(model)) or weight_bytes(model) > external_above
    try:
        ir.save(model, stage.path, external_data=stage.data.name if external else None)
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"{stage.output}: the model cannot be serialised: {error}") from error


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, sub-graphs included."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def check(path: Path) -> str | None:
    """Return what ``onnx.checker``, shapes and types included, finds wrong with a file."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        return " ".join(str(error).split())[:500]
    return None


def describe(
    model: ir.Model, report: Report, choices: Mapping[str, Choice], heads: Sequence[Head]
) -> None:
    """Set the metadata and the IR version of an exported model.

    Args:
        model: the model.
        report: what the passes did.
        choices: what calibration chose, by name of the layer.
        heads: the layers that were replaced.
    """
    modes = {head.name: head.mode for head in heads}
    forms = sorted({head.rescore for head in heads if head.rescore != "fp32"})
    approximate = sorted({mode for mode in modes.values() if mode != "exact"})
    recalls = [choice.recall.mean for choice in choices.values()]
    measured = all(name in choices for name, mode in modes.items() if mode != "exact")
    recall = str(min(recalls, default=1.0)) if measured else "not measured"
    rewritten = {
        "summary": report.summary(),
        "rewritten": [
            {"name": entry.name, "kind": entry.kind, "became": entry.reason}
            for entry in report.rewritten
        ],
        "notes": report.notes,
    }
    model.metadata_props.update(
        {
            "qcompile.version": qcompile.__version__,
            "qcompile.report": json.dumps(rewritten, ensure_ascii=False),
            "qcompile.mode": ", ".join(approximate) or "exact",
            "qcompile.recall": recall,
            "qcompile.recall.meaning": _MEASURED if approximate else _RECALL_MEANING,
            "qcompile.rescore": ", ".join(forms) or "fp32",
        }
    )
    if forms:
        model.metadata_props["qcompile.rescore.meaning"] = _ROUNDED
    if choices:
        told = {name: choice.to_dict() for name, choice in choices.items()}
        model.metadata_props["qcompile.calibration"] = json.dumps(told, ensure_ascii=False)
    model.ir_version = _ir_version(model)


def _ir_version(model: ir.Model) -> int:
    """Return the oldest IR version that holds the model, so that old runtimes read it."""
    imports = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    needed = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    if any(function.overload for function in model.functions.values()):
        needed = max(needed, 10)
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values()]
        values += [output for node in graph for output in node.outputs]
        for value in values:
            if value.dtype is not None and value.dtype > ir.DataType.FLOAT8E5M2FNUZ:
                needed = max(needed, _NEWER_TYPES.get(value.dtype, model.ir_version))
    return max(_OLDEST_IR, needed)
