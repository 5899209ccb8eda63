"""Cuts an output layer out of a model, to time it alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from qcompile.exporter.reading import read_onnx
from qcompile.exporter.writing import Staging, save
from qcompile.passes.onnx.replace import Head
from qcompile.passes.onnx.shapes import Shapes
from qcompile.running.latency import interleaved
from qcompile.running.sessions import Feeds, Session


def measure_heads(
    before: Path, stage: Staging, head: Head, calls: Sequence[Feeds]
) -> tuple[float, float] | None:
    """Return the median milliseconds of the layer alone, before and after.

    The layer gets the activations that the model computes on ``calls``, one after the other.
    """
    folder = stage.path.parent
    names = [str(value.name) for value in read_onnx(before).graph.inputs]
    try:
        front = cut(before, names, head.reads, folder / "front.onnx")
        old = cut(before, head.reads, head.results_before, folder / "old-head.onnx")
        new = cut(stage.path, head.reads, head.results_after, folder / "new-head.onnx")
    except ValueError:
        return None  # another way leads round the layer, so it cannot be cut out
    session = Session(front, plugin=False)
    activations = [session.run(feeds) for feeds in calls]
    first = Session(old, plugin=False, literal=False)
    second = Session(new, plugin=True, literal=False)
    slow, fast = interleaved(first.cycled(activations), second.cycled(activations))
    return slow, fast


def cut(source: Path, inputs: Sequence[str], outputs: Sequence[str], path: Path) -> Path:
    """Write the part of a model between two sets of values as a model of its own.

    Raises:
        ValueError: the part needs more inputs than ``inputs``.
    """
    model = read_onnx(source)
    shapes = Shapes(model)
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    graph.opset_imports.update(model.opset_imports)
    part = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    for value in (*graph.inputs, *graph.outputs):
        # A value inside the graph may come without type.
        value.type = value.type or ir.TensorType(shapes.dtype(value))
    save(part, Staging(path, path.parent))
    return path
