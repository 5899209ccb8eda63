"""``export_onnx``: anyone's ONNX file in, the same model with a fast output layer out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from qcompile import ops
from qcompile.calibration.queries import in_calls, load
from qcompile.calibration.tables import Tables
from qcompile.config import LSH
from qcompile.errors import ConfigurationError, ExportError, PassError, QCompileError
from qcompile.exporter import inputs as example
from qcompile.exporter.calibrate import MODES, MOST_TIMED, Promise, check_mode, keep, set_mode
from qcompile.exporter.finish import Plan, Reference, finish
from qcompile.exporter.probing import survive
from qcompile.exporter.progress import Progress, lines_only, unwatched
from qcompile.exporter.reading import external_files, node_count, read_onnx, silent
from qcompile.exporter.rescore import check_rescore, keep_rows
from qcompile.exporter.result import ExportResult
from qcompile.exporter.verify import Expectation
from qcompile.exporter.writing import EXTERNAL_ABOVE, Staging, check, save, staging
from qcompile.passes.onnx.output_layer import OutputLayer
from qcompile.passes.onnx.replace import Head
from qcompile.passes.onnx.shapes import Shapes
from qcompile.report import Report
from qcompile.running.sessions import Feeds, Session, brief


def export_onnx(
    source: str | Path,
    output: str | Path | None = None,
    *,
    top_k: int | None = None,
    min_outputs: int = 4096,
    node: str | None = None,
    inputs: str | Path | Mapping[str, Any] | None = None,
    verify: bool = True,
    measure: bool = True,
    external_above: int = EXTERNAL_ABOVE,
    recall: float | None = None,
    calibration: str | Path | Mapping[str, Any] | None = None,
    batch: int = 1,
    guard: float = 0.0,
    seed: int = 0,
    mode: str | None = None,
    lsh: LSH | None = None,
    rescore: str = "fp32",
    progress: Progress | None = None,
) -> ExportResult:
    """Replace the huge output layers of an ONNX file by fused operators.

    Inputs and outputs stay as they are: names, shapes, types, order. With ``top_k`` the output of
    scores or probabilities gives way to two: the ``top_k`` largest of its entries along the last
    axis, descending, and their ids (int64). The file runs in plain onnxruntime; with the plugin
    (:func:`qcompile.register`) it runs fast.

    Args:
        source: an ONNX file, opset 9 or later; never overwritten.
        output: the file to write; ``None`` puts ``.qcompile.onnx`` for the source's ending.
        top_k: how many (scores, ids) to hand out; ``None`` for every score, as before.
        min_outputs: smallest layer that counts as huge.
        node: name or glob of the layer's node, weight or scores, where it is to be chosen.
        inputs: arrays to verify and measure with, by input name, or an ``.npz`` file of them;
            random ones by default.
        verify: compare result and source in onnxruntime, with the plugin and without.
        measure: time both, in turns.
        external_above: bytes of weights from which they go to a file of their own.
        recall: share of the best classes that has to be found by layers that hand out the best
            alone; the fastest setting that keeps it on ``calibration`` is taken. ``None`` for
            layers that miss nothing.
        calibration: inputs to search and judge settings with: arrays of many rows by input name,
            or an ``.npz`` file of them.
        batch: rows of ``calibration`` in one call, where the model leaves that open.
        guard: widens the search for inputs unlike those of ``calibration``; see ``LinearTopK``.
        seed: of the division of the inputs, and of what is learned from the weights.
        mode: how a layer that hands out the best searches: ``exact``, ``cells`` or ``lsh``.
            ``None`` for the fastest that keeps ``recall``, or ``exact`` where nothing is promised.
        lsh: hash tables for mode ``lsh``; those of ``qcompile.LSH()`` where that mode is asked for.
        rescore: what a layer that hands out the best keeps of its rows: ``fp32``, ``bf16`` or
            ``none``, in which case its quantised rows are the layer. Smaller, and exact for the
            rounded rows.
        progress: called with a line of text at every step, and within a long one with the part of
            it that is done, from 0 to 1, or ``None``.

    Raises:
        ConfigurationError: of ``recall`` and ``calibration`` one is missing, or out of range.
        ExportError: the source cannot be read, has no layer to replace, or the result differs
            from it; nothing is written then.
        DataError: ``inputs`` do not fit the model.
    """
    source = Path(source)
    output = default_output(source) if output is None else Path(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise ExportError(f"{output}: this is the source; name another file for the result.")
    progress = progress or unwatched
    say = lines_only(progress)
    check_promise(recall, calibration, mode)
    check_rescore(rescore)
    say(f"reading {source}")
    model = read_onnx(source)
    outside = external_files(model)
    survive(source, lambda: Shapes(model), node_count(model))
    size = source.stat().st_size + sum(file.stat().st_size for file in outside)
    with no_surprises(source), staging(output) as stage:
        say("replacing the output layer")
        report, heads = rewrite(
            model, str(source), top_k=top_k, min_outputs=min_outputs, where=node
        )
        reference, choices, calls = None, {}, []
        tables = [Tables(lsh or LSH())] if lsh is not None or mode == "lsh" else []
        if recall is not None and calibration is not None:
            calls = calls_of(source, calibration, batch)
            promise = Promise(recall, calls, guard, seed, mode, tables)
            choices = keep(model, heads, promise, stage.path.parent, report, progress)
            inputs = calls[0] if inputs is None else inputs
        elif mode in MODES[1:]:
            set_mode(model, heads, str(mode), tables, seed, report)
        keep_rows(model, heads, rescore, report)
        if verify or measure:
            reference = _reference(source, model, heads, stage, top_k, inputs)
            reference.calls = calls[:MOST_TIMED]
        plan = Plan(model, report, heads, top_k, size, external_above, source, choices)
        return finish(plan, stage, reference, verify=verify, measure=measure, say=say)


def check_promise(recall: float | None, calibration: object, mode: str | None) -> None:
    """Refuse half of a promise, and a mode that there is not.

    Raises:
        ConfigurationError: says what is missing.
    """
    check_mode(mode)
    if (recall is None) != (calibration is None):
        missing = "calibration inputs" if calibration is None else "a recall to keep"
        raise ConfigurationError(
            f"a promised recall needs both a number and inputs to show it on: {missing} missing "
            "(--recall R --calibrate FILE.npz)."
        )


@contextmanager
def no_surprises(source: Path) -> Iterator[None]:
    """Turn what a broken graph may raise anywhere into an ExportError that names the file."""
    try:
        with silent("onnx_ir"):
            yield
    except QCompileError:
        raise
    except Exception as error:
        wrong = check(source)
        if wrong is None:
            raise ExportError(
                f"{source}: cannot be exported, though onnx.checker finds nothing wrong with it: "
                f"{type(error).__name__}: {brief(error)}. Please report it with the file."
            ) from error
        raise ExportError(f"{source}: the graph is broken: {wrong}") from error


def default_output(source: Path) -> Path:
    """Return ``model.qcompile.onnx`` for ``model.onnx``."""
    return source.with_name(f"{source.stem}.qcompile.onnx")


def rewrite(
    model: ir.Model,
    where_from: str,
    *,
    top_k: int | None,
    min_outputs: int,
    where: str | None,
) -> tuple[Report, list[Head]]:
    """Replace the output layers of ``model`` in place.

    Raises:
        ExportError: there is none to replace; says why not.
    """
    step = OutputLayer(top_k=top_k, min_outputs=min_outputs, where=where)
    try:
        result = step(model)
        if not result.modified and _inline(model):
            result = step(model)
            result.report.notes.append("local functions of the source were expanded")
    except PassError as error:
        raise ExportError(f"{where_from}: {error}") from error
    if not result.modified:
        raise ExportError(f"{where_from}: {_nothing(result.report, min_outputs, where)}")
    return result.report, step.heads


def _inline(model: ir.Model) -> bool:
    """Expand the local functions of others, in which a layer may hide."""
    if not any(domain != ops.DOMAIN for domain, _, _ in model.functions):
        return False
    return InlinePass()(model).modified


def _nothing(report: Report, min_outputs: int, where: str | None) -> str:
    done = [entry for entry in report.skipped if entry.reason.startswith("already")]
    if done:
        return (
            f"node {done[0].name!r} is {done[0].reason}: this file has been exported before. "
            "Export the file that it was made from."
        )
    if where is not None:
        near = [entry for entry in report.skipped if "do not match" not in entry.reason]
        names = [repr(entry.name) for entry in report.skipped][:8]
        why = "; ".join(f"{entry.name!r}: {entry.reason}" for entry in near[:3])
        return f"no output layer answers to {where!r}. {why or 'Layers: ' + ', '.join(names)}."
    small = "fewer than"
    large = [entry for entry in report.skipped if small not in entry.reason]
    parts = [f"{entry.kind} {entry.name!r}: {entry.reason}" for entry in large[:5]]
    if not parts and report.skipped:
        most = max(int(entry.reason.split()[0]) for entry in report.skipped)
        parts = [f"the largest has {most} outputs; lower min_outputs (--min-outputs)"]
    parts += report.notes
    why = "; ".join(parts) or "it has no linear layer"
    return f"no output layer of {min_outputs} outputs or more was found. {why}."


def calls_of(source: Path, calibration: str | Path | Mapping[str, Any], batch: int) -> list[Feeds]:
    """Cut calibration inputs into calls of the model."""
    if batch < 1:
        raise ConfigurationError(f"batch is {batch}, expected at least 1.")
    session = Session(source, plugin=False)
    if isinstance(calibration, str | Path):
        arrays = load(Path(calibration))
    else:
        arrays = {name: np.asarray(array) for name, array in calibration.items()}
    fixed = {a.shape[0] for a in session.inputs if a.shape and isinstance(a.shape[0], int)}
    calls = in_calls(arrays, fixed.pop() if len(fixed) == 1 else batch, "calibration")
    return [example.given(call, session) for call in calls]


def _reference(
    source: Path,
    model: ir.Model,
    heads: list[Head],
    stage: Staging,
    top_k: int | None,
    inputs: str | Path | Mapping[str, Any] | None,
) -> Reference:
    session = Session(source, plugin=False)
    feeds = example.invented(session, model) if inputs is None else example.given(inputs, session)
    answers = session.run(feeds)
    exposed = _exposed_scores(source, heads, stage, feeds) if top_k is None else {}
    expected = expectations(answers, heads, top_k, exposed)
    return Reference([(feeds, expected)], source)


def expectations(
    answers: Mapping[str, Any],
    heads: list[Head],
    top_k: int | None,
    exposed: Mapping[str, np.ndarray],
) -> list[Expectation]:
    """Say what the exported model has to answer, given the source's answers.

    Args:
        answers: the source's outputs by name.
        heads: the layers that were replaced.
        top_k: as for :func:`export_onnx`.
        exposed: all scores of the layers whose choice alone is handed out, by name.
    """
    found: dict[str, Expectation] = {}
    for head in heads:
        soft = head.became.startswith("LinearSoftmax") or head.distribution == "Softmax"
        own: dict[str, Any] = {
            "probabilities": soft,
            "axis": head.axis_after,
            "ids_axis": head.axis_after,
            "step": head.step,
            "inexact": head.inexact,
            "approximate": head.mode != "exact",
            "estimated": head.mode == "cells" and bool(head.distribution),
        }
        if top_k is not None:
            scores, ids = head.results_after
            before = head.results_before[0]
            found[before] = Expectation(scores, answers[before], "best", ids, **own)
            continue
        for name in head.results_before:
            if name not in answers:
                continue
            answer = answers[name]
            if head.scores in exposed and answer.dtype == np.int64:
                own |= {"probabilities": False, "axis": head.axis}
                found[name] = Expectation(name, exposed[head.scores], "ids", answer, **own)
            else:
                found[name] = Expectation(name, answer, **own)
    return [found.get(name) or Expectation(name, answer) for name, answer in answers.items()]


def _exposed_scores(
    source: Path, heads: list[Head], stage: Staging, feeds: Feeds
) -> dict[str, np.ndarray]:
    """Return all scores of the layers of which the graph hands out only the best ids."""
    choices = [head.scores for head in heads if head.became.startswith("LinearTopK")]
    if not choices:
        return {}
    model = read_onnx(source)
    shapes = Shapes(model)
    values = {output.name: output for node in model.graph for output in node.outputs}
    wanted = [name for name in choices if name in values]  # not what a local function hid
    for name in wanted:
        value = values[name]
        if not value.is_graph_output():
            value.type = value.type or ir.TensorType(shapes.dtype(value))
            model.graph.outputs.append(value)
    side = Staging(stage.output.with_name("scores.onnx"), stage.path.parent)
    save(model, side)
    answers = Session(side.path, plugin=False).run(feeds)
    return {name: answers[name] for name in wanted}
