"""``export``: a torch module becomes an ONNX file.

torch.onnx writes standard operators; the pass over ONNX graphs that serves anyone's file then
replaces the output layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram

from qcompile.calibration.tables import Tables
from qcompile.config import LSH
from qcompile.errors import ExportError, PassError
from qcompile.exporter.calibrate import MODES, MOST_TIMED, Promise, keep, set_mode
from qcompile.exporter.finish import Plan, Reference, finish
from qcompile.exporter.onnx_model import calls_of, check_promise, expectations
from qcompile.exporter.progress import Progress, lines_only, unwatched
from qcompile.exporter.rescore import check_rescore, keep_rows
from qcompile.exporter.result import ExportResult
from qcompile.exporter.torch_inputs import Arguments, arrays, feeds_for, joined, split
from qcompile.exporter.torch_trace import evaluation_copy, quiet, to_onnx, trace, varying
from qcompile.exporter.verify import Expectation
from qcompile.exporter.writing import EXTERNAL_ABOVE, Staging, save, staging
from qcompile.passes.onnx.output_layer import OutputLayer
from qcompile.passes.onnx.replace import Head
from qcompile.report import Report
from qcompile.running.sessions import Feeds


def export(
    model: nn.Module | ExportedProgram,
    path: str | Path,
    example_inputs: Any = None,
    *,
    top_k: int | None = None,
    min_outputs: int = 4096,
    node: str | None = None,
    dynamic_shapes: Any = None,
    opset_version: int = 18,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    verify: bool = True,
    measure: bool = True,
    external_above: int = EXTERNAL_ABOVE,
    recall: float | None = None,
    calibration: Any = None,
    batch: int = 1,
    guard: float = 0.0,
    seed: int = 0,
    mode: str | None = None,
    lsh: LSH | None = None,
    rescore: str = "fp32",
    progress: Progress | None = None,
) -> ExportResult:
    """Write ``model`` as an ONNX file for plain onnxruntime.

    The model is traced in evaluation mode on the CPU; its own mode, device and parameters stay as
    they are. Sparse output layers, and plain ones of ``min_outputs`` outputs or more, become
    fused operators that compute the same scores. A model without any is written all the same.

    Args:
        model: the module, or a program of ``torch.export``.
        path: the file to write.
        example_inputs: the tuple of positional inputs (one tensor alone will do), or a mapping of
            keyword inputs; a program brings its own.
        top_k: hand out the ``top_k`` best (scores, ids) in place of all scores.
        min_outputs: smallest plain layer that counts as huge.
        node: name or glob of the layer's node, weight or scores, where it is to be chosen.
        dynamic_shapes: as for ``torch.export.export``; ``None`` lets the first dimension vary, of
            every input whose first dimension is as large as the first input's; ``False`` fixes
            every dimension.
        opset_version: version of the standard operators.
        input_names: names of the inputs; those of ``forward`` by default.
        output_names: names of the outputs.
        verify: compare onnxruntime with the module itself, on ``example_inputs`` and on another
            batch size, with the plugin and without.
        measure: time the model before and after the output layer is replaced, in turns.
        external_above: bytes of weights from which they go to a file of their own.
        recall: share of the best classes that has to be found by layers that hand out the best
            alone; the fastest setting that keeps it on ``calibration`` is taken.
        calibration: inputs of many rows, tensors or NumPy arrays, in the form of
            ``example_inputs``; or batches of those, such as a data loader; or a mapping of arrays
            by the graph's input names, or an ``.npz`` file of those.
        batch: rows of ``calibration`` in one call, where the model leaves that open.
        guard: widens the search for inputs unlike those of ``calibration``; see ``LinearTopK``.
        seed: of the division of the inputs, and of what is learned from the weights.
        mode: how a layer that hands out the best searches: ``exact``, ``cells`` or ``lsh``.
            ``None`` for the fastest that keeps ``recall``, or ``exact`` where nothing is promised.
        lsh: hash tables for mode ``lsh``; those of a sparse output layer are its own by default.
        rescore: what a layer that hands out the best keeps of its rows: ``fp32``, ``bf16`` or
            ``none``, in which case its quantised rows are the layer. Smaller, and exact for the
            rounded rows.
        progress: called with a line of text at every step, and within a long one with the part of
            it that is done, from 0 to 1, or ``None``.

    Raises:
        ConfigurationError: of ``recall`` and ``calibration`` one is missing, or out of range.
        TraceError: the module cannot be traced; names the source line and a way round.
        ExportError: a parameter holds NaN or infinity, or the result cannot be written or
            differs; nothing is written then.
        DataError: ``example_inputs`` are missing or hold no tensor.
    """
    path = Path(path)
    progress = progress or unwatched
    say = lines_only(progress)
    check_promise(recall, calibration, mode)
    check_rescore(rescore)
    _check_finite(model)
    arguments = split(model, example_inputs)
    with evaluation_copy(model) as (module, call), staging(path) as stage:
        say("tracing")
        program = trace(module, arguments, dynamic_shapes)
        onnx_model = to_onnx(program, opset_version, input_names, output_names)
        before = Staging(stage.path.with_name("before.onnx"), stage.path.parent)
        names = _names(onnx_model)
        save(onnx_model, before, external_above)
        say("replacing the output layer")
        report, heads = _rewrite(onnx_model, model, top_k, min_outputs, node)
        tables = [Tables(lsh)] if lsh is not None else _trained_tables(model)
        choices, calls = {}, []
        if recall is not None:
            inputs = _calibration(model, calibration, names[0])
            calls = calls_of(before.path, inputs, batch)
            promise = Promise(recall, calls, guard, seed, mode, tables)
            choices = keep(onnx_model, heads, promise, stage.path.parent, report, progress)
        elif mode in MODES[1:]:
            tables = tables or [Tables(LSH())]
            set_mode(onnx_model, heads, str(mode), tables, seed, report)
        keep_rows(onnx_model, heads, rescore, report)
        reference = Reference([], before.path)
        if verify or measure:
            cases = _cases(call, arguments, varying(program), names, heads, top_k, report)
            reference = Reference(cases, before.path)
        size = sum(f.stat().st_size for f in (before.path, before.data) if f.exists())
        reference.calls = calls[:MOST_TIMED]
        plan = Plan(onnx_model, report, heads, top_k, size, external_above, before.path, choices)
        measure = measure and bool(heads)
        return finish(plan, stage, reference, verify=verify, measure=measure, say=say)


def _check_finite(model: nn.Module | ExportedProgram) -> None:
    """Refuse weights of which no answer can be right; buffers may hold the infinities of masks."""
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.is_meta or not values.is_floating_point():
            continue
        if values.element_size() == 1:
            values = values.float()  # torch does not compute with 8-bit floats themselves
        if not torch.isfinite(values).all():
            raise ExportError(
                f"export: parameter {name!r} of shape {list(values.shape)} holds NaN or infinity. "
                "Check that training did not diverge; export a checkpoint from before it did."
            )


def _names(model: ir.Model) -> tuple[list[str], list[str]]:
    return [str(v.name) for v in model.graph.inputs], [str(v.name) for v in model.graph.outputs]


def _rewrite(
    onnx_model: ir.Model,
    model: nn.Module | ExportedProgram,
    top_k: int | None,
    min_outputs: int,
    node: str | None,
) -> tuple[Report, list[Head]]:
    step = OutputLayer(
        top_k=top_k, min_outputs=min_outputs, where=node, also=_sparse_weights(model)
    )
    try:
        result = step(onnx_model)
    except PassError as error:
        raise ExportError(f"export: {error}") from error
    if not result.modified:
        reasons = [e.reason for e in result.report.skipped if "fewer than" not in e.reason]
        why = f" ({'; '.join(reasons[:3])})" if reasons else ""
        if top_k is not None or node is not None:
            raise ExportError(
                f"export: no output layer of {min_outputs} outputs or more was found{why}; leave "
                "top_k and node out, or lower min_outputs."
            )
        result.report.notes.append(
            f"no output layer of {min_outputs} outputs or more{why}: standard operators alone"
        )
    return result.report, step.heads


def _sparse_weights(model: nn.Module | ExportedProgram) -> list[np.ndarray]:
    """Return the weights of the model's sparse output layers."""
    return [_rows(layer) for layer in _sparse_layers(model)]


def _rows(layer: Any) -> np.ndarray:
    return layer.weight.detach().cpu().float().numpy()


def _trained_tables(model: nn.Module | ExportedProgram) -> list[Tables]:
    """Return the hash tables that the model's sparse output layers were trained with."""
    return [Tables(layer.config, layer.draw, _rows(layer)) for layer in _sparse_layers(model)]


def _calibration(model: nn.Module | ExportedProgram, given: Any, names: list[str]) -> Any:
    """Return calibration inputs as arrays by the graph's input names, or the file of them."""
    by_name = isinstance(given, Mapping) and set(given) == set(names)
    if isinstance(given, str | Path) or by_name:
        return given
    return joined(model, given, names, "calibration")


def _sparse_layers(model: nn.Module | ExportedProgram) -> list[Any]:
    lsh = sys.modules.get("qcompile.nn.lsh")
    if lsh is None or not isinstance(model, nn.Module):
        return []  # a model cannot hold a layer whose module was never imported
    return [module for module in model.modules() if isinstance(module, lsh.LSHLinear)]


def _cases(
    call: Callable[..., Any],
    arguments: Arguments,
    batched: Sequence[int],
    names: tuple[list[str], list[str]],
    heads: list[Head],
    top_k: int | None,
    report: Report,
) -> list[tuple[Feeds, list[Expectation]]]:
    """Run the module itself on the example inputs and, where the batch varies, on another."""
    input_names, output_names = names
    found: list[tuple[Feeds, list[Expectation]]] = []
    for case in arguments.cases(batched):
        try:
            with torch.no_grad(), quiet():
                answers = arrays(call(*case.args, **case.kwargs))
        except Exception as error:
            if not found:
                raise ExportError(f"export: the model fails on example_inputs: {error}") from error
            report.notes.append(f"not verified on another batch size: the model fails ({error})")
            break
        if len(answers) != len(output_names):
            raise ExportError(
                f"export: the model returns {len(answers)} tensors, its graph {len(output_names)}."
            )
        outputs = dict(zip(output_names, answers, strict=True))
        found.append((feeds_for(case, input_names), expectations(outputs, heads, top_k, {})))
    return found
