"""Lets the output layers of a rewritten model approximate as much as a promised recall allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile import ops
from qcompile.calibration.choice import Choice
from qcompile.calibration.queries import Queries, collect, halves
from qcompile.calibration.search import Task, search
from qcompile.calibration.tables import Tables
from qcompile.config import choose
from qcompile.errors import ConfigurationError
from qcompile.exporter.progress import Progress, lines_only
from qcompile.exporter.writing import Staging, save
from qcompile.passes.onnx.constants import present
from qcompile.passes.onnx.head import use_index
from qcompile.passes.onnx.replace import Head
from qcompile.report import Report
from qcompile.running.sessions import Feeds, Session
from qcompile.runtime.index import Index, build_cells

MODES = tuple(ops.TOP_K_INPUTS)
"""Of ``LinearTopK``; the first is exact."""

MOST_TIMED = 64
"""Calls on which the whole model is timed, one after the other."""


@dataclass(frozen=True)
class Promise:
    """A recall to keep, and inputs to show it on.

    Args:
        recall: share of the k best scores that have to be found, above 0 and at most 1.
        calls: inputs, a call each.
        guard: ``guard`` of ``LinearTopK``, which widens the search for unusual inputs.
        seed: of the division of the calls and of the cells.
        mode: of ``LinearTopK``; ``None`` for the fastest.
        tables: hash tables for mode ``lsh``.
    """

    recall: float
    calls: Sequence[Feeds]
    guard: float = 0.0
    seed: int = 0
    mode: str | None = None
    tables: Sequence[Tables] = ()

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise ConfigurationError(f"recall is {self.recall}, expected above 0 and at most 1.")
        if not 0 <= self.guard < float("inf"):
            raise ConfigurationError(f"guard is {self.guard}, expected 0 or more.")


def keep(
    model: ir.Model,
    heads: Sequence[Head],
    promise: Promise,
    folder: Path,
    report: Report,
    progress: Progress,
) -> dict[str, Choice]:
    """Search an index for each layer of ``model`` that hands out its best, and put it in.

    Args:
        model: rewritten, every layer exact.
        heads: the layers that were replaced; their mode is set.
        promise: what to keep.
        folder: for files of the search; the caller removes it.
        report: gets a note about layers that stay exact.
        progress: called with a line of text at every step, and with the part of it that is done.

    Returns:
        What was chosen, by name of the layer.

    Raises:
        DataError: the inputs are too few, or give NaN.
    """
    nodes = {str(node.name): node for node in model.graph}
    best = _best(heads, promise.mode, report)
    if not best:
        return {}
    proposing, judging = halves(promise.calls, promise.seed)
    names = {head.name: str(present(nodes[head.node].inputs[0]).name) for head in best}
    say = lines_only(progress)
    say(f"running the model on {len(promise.calls):,} calibration calls")
    read = sorted(set(names.values()))
    queries = [_hidden(model, read, calls, folder) for calls in (proposing, judging)]
    choices = {}
    for number, head in enumerate(best):
        node = nodes[head.node]
        where = folder / f"search-{number}"
        where.mkdir()
        task = Task(
            weight=_array(node.inputs[1]),
            bias=_array(node.inputs[2]),
            k=node.attributes["k"].as_int(),
            exact=Index("exact", _packed(node)),
            proposing=queries[0][names[head.name]],
            judging=queries[1][names[head.name]],
            promised=promise.recall,
            guard=promise.guard,
            seed=promise.seed,
            modes=MODES[1:] if promise.mode is None else (promise.mode,),
            tables=_tables_of(node, promise.tables),
            log_sum=bool(head.distribution),
        )
        choice = search(task, where, say, progress)
        if choice.index.mode != "exact":
            use_index(model.graph, node, choice.index)
        head.mode = choice.index.mode
        choices[head.name] = choice
    return choices


def set_mode(
    model: ir.Model,
    heads: Sequence[Head],
    mode: str,
    tables: Sequence[Tables],
    seed: int,
    report: Report,
) -> None:
    """Let each layer of ``model`` that hands out its best search in ``mode``, without a promise.

    Args:
        model: rewritten, every layer exact.
        heads: the layers that were replaced; their mode is set.
        mode: ``cells`` or ``lsh``.
        tables: hash tables for mode ``lsh``.
        seed: of the cells.
        report: gets a note.

    Raises:
        ConfigurationError: there are no hash tables for a layer.
    """
    nodes = {str(node.name): node for node in model.graph}
    for head in _best(heads, mode, report):
        node = nodes[head.node]
        weight, bias = _array(node.inputs[1]), _array(node.inputs[2])
        if mode == "cells":
            index = build_cells(weight, bias, seed=seed)
        else:
            found = _tables_of(node, tables)
            if found is None:
                raise ConfigurationError(
                    f"mode lsh: no hash tables are known for {head.name!r}; give lsh= (--family, "
                    "--tables, --hashes)."
                )
            index = found.build(weight, Index("exact", _packed(node)))
        use_index(model.graph, node, index)
        head.mode = mode
        report.notes.append(
            f"{head.name!r} searches in mode {mode} by default settings; its recall was not "
            "measured (recall= and calibration=, --recall and --calibrate, do that)"
        )


def check_mode(mode: str | None) -> None:
    """Refuse a mode that there is not.

    Raises:
        ConfigurationError: names those that there are.
    """
    if mode is not None:
        choose("mode", mode, MODES)


def _best(heads: Sequence[Head], mode: str | None, report: Report) -> list[Head]:
    """Return the layers that may leave scores out; the report tells of the others."""
    best = []
    for head in heads:
        if not head.became.startswith(ops.LINEAR_TOP_K.name):
            reason = "only a layer that hands out its best (top_k) may leave some out"
        elif head.distribution and mode == "lsh":
            reason = "hash tables tell of few, and mode cells alone estimates the others' sum"
        else:
            best.append(head)
            continue
        report.notes.append(f"{head.name!r} stays exact: {head.became} needs every score; {reason}")
    return best


def _tables_of(node: ir.Node, tables: Sequence[Tables]) -> Tables | None:
    weight = _array(node.inputs[1])
    return next((each for each in tables if each.fit(weight)), None)


def _hidden(
    model: ir.Model, names: Sequence[str], calls: Sequence[Feeds], folder: Path
) -> dict[str, Queries]:
    """Run the part of a model before its output layers."""
    inputs = [str(value.name) for value in model.graph.inputs]
    inner = [name for name in names if name not in inputs]
    if not inner:
        return collect(lambda feeds: feeds, names, calls, lambda: None)
    graph = ir.convenience.extract(model.graph, inputs, inner)
    graph.opset_imports.update(model.opset_imports)
    for value in graph.outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    part = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    path = folder / "calibration-front.onnx"
    save(part, Staging(path, folder))
    session = Session(path, plugin=False)
    return collect(lambda feeds: {**feeds, **session.run(feeds)}, names, calls, lambda: None)


def _packed(node: ir.Node) -> dict[str, np.ndarray]:
    names = ops.LINEAR_TOP_K.inputs[3 : len(node.inputs)]
    return {name: _array(value) for name, value in zip(names, node.inputs[3:], strict=True)}


def _array(value: ir.Value | None) -> np.ndarray:
    if value is None or value.const_value is None:
        raise ValueError("an output layer without constant weights")
    return value.const_value.numpy()
