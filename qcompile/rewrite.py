"""``transform``: a torch model in, quadratic neurons, a sparse output layer, fused products out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from qcompile.comparison import add_flops, bypassed, measure_call, measure_first
from qcompile.config import LSH, Quadratic
from qcompile.errors import ConfigurationError, PassError, QCompileWarning
from qcompile.passes.base import Pass, PassManager
from qcompile.passes.fx.fuse_hadamard import FuseHadamard
from qcompile.passes.fx.inputs import Inputs
from qcompile.passes.fx.merge_parallel import MergeParallel
from qcompile.passes.fx.quadratic import IS_SPARSE, SubstituteQuadratic
from qcompile.passes.fx.sparse_hidden import SubstituteHidden
from qcompile.passes.fx.sparse_output import SubstituteOutput
from qcompile.passes.fx.tracing import NONE, Failure, Trace, full_copy, trace
from qcompile.report import Report
from qcompile.requests import (
    QuadraticRequest,
    SparseRequest,
    check_model,
    chooses_memory,
    read_quadratic,
    read_sparse,
)

__all__ = ["explain", "merge_parallel", "transform"]


def transform(
    model: nn.Module,
    quadratic: QuadraticRequest = None,
    sparse_output: SparseRequest = None,
    *,
    batch_norm: str | None = None,
    activation: str | None = None,
    memory: int | str | None = None,
    memory_budget: int | str | None = None,
    memory_options: Mapping[str, Any] | None = None,
    fuse: bool = False,
    example_inputs: Any = None,
    strict: bool = False,
    inplace: bool = False,
) -> nn.Module:
    """Substitute quadratic layers and an LSH-sparse output layer in a model of any class.

    Layers are exchanged in the module tree; class, methods, hooks, training mode, devices, types
    and the names of all other parameters stay. A layer that cannot be exchanged without losing
    something is left alone, and the report says why. ``docs/transform.md`` has the details.

    Args:
        model: a module. What ``torch.compile`` returned is unwrapped: compile the result again.
        quadratic: name of a form, a :class:`qcompile.Quadratic`, or several; of several, the
            first whose selectors take a layer decides.
        sparse_output: ``True`` or a :class:`qcompile.LSH` to exchange the output layer; with
            ``LSH(where=...)`` also hidden layers, and several to treat them differently. The model
            is then called as before, or as ``model(x, target=labels)``, which returns
            ``(output, loss)`` like ``torch.nn.AdaptiveLogSoftmaxWithLoss``.
        batch_norm: ``branch``, ``outer``, ``both`` or ``none``, for every ``Quadratic``: what
            becomes of the batch norm that follows a quadratic layer.
        activation: ``keep`` or ``drop``, likewise: the activation behind a quadratic layer.
        memory: 0, 1 or 3, likewise: what training keeps for the backward pass. ``auto`` lets each
            quadratic layer keep as much as a training step within ``memory_budget`` has room for,
            at the least extra operations. With it nothing else needs to be asked for: layers may
            be quadratic already.
        memory_budget: bytes, or text such as ``4GiB`` or ``500MB``.
        memory_options: how the model is trained, such as ``{"optimizer": "adam"}``; see
            :func:`qcompile.memory.fit_memory`.
        fuse: compute products of linear layers, quadratic layers and the gated layers of
            transformers among them, by one operator each, which has a kernel on GPUs. Done last;
            parameters and their names stay. Nothing else needs to be asked for.
        example_inputs: arguments of one call: a tensor, a tuple, or a dict of keyword arguments.
            Needed where ``torch.fx.symbolic_trace`` fails, and to count operations.
        strict: raise where something that was asked for is not done, instead of warning.
        inplace: rewrite ``model`` itself instead of a deep copy.

    Returns:
        The rewritten model, or the new layer if the model is itself a layer to exchange. Its
        ``qcompile_report`` is a :class:`qcompile.Report`.

    Raises:
        ConfigurationError: an argument is malformed, or a layer cannot take the form asked for.
        TraceError: the output layer cannot be found since the model cannot be traced.
        PassError: the model is of a kind that cannot be rewritten, several layers could be the
            output layer, the rewritten model fails on the example inputs, or ``strict`` and
            something was not done. After any error, ``model`` is as it was.
    """
    model = check_model(model)
    work = model if inplace else _copy(model)
    before = _Snapshot(work)
    try:
        automatic = chooses_memory(memory, memory_budget, memory_options)
        options = {"batch_norm": batch_norm, "activation": activation}
        configs = read_quadratic(quadratic, **options, memory=None if automatic else memory)
        result, report = work, Report()
        if quadratic is not None or sparse_output or not automatic:
            steps = configs, read_sparse(sparse_output), fuse and not automatic
            result, report = _rewrite(work, *steps, example_inputs)
        if automatic:
            report.notes.append(_fit(result, memory_budget, example_inputs, memory_options))
        if automatic and fuse:  # layers that recompute are not fused
            result, fused = _rewrite(result, [], [], True, example_inputs)
            report.extend(fused)
        if strict and report.problems:
            raise PassError(" ".join(report.problems))
    except BaseException:
        before.restore()
        raise
    for problem in report.problems:
        warnings.warn(problem, QCompileWarning, stacklevel=2)
    vars(result)["qcompile_report"] = report
    return result


def explain(
    model: nn.Module,
    quadratic: QuadraticRequest = None,
    sparse_output: SparseRequest = None,
    *,
    batch_norm: str | None = None,
    activation: str | None = None,
    memory: int | None = None,
    fuse: bool = False,
    example_inputs: Any = None,
) -> Report:
    """Return the report that :func:`transform` would give, and leave the model as it was.

    The new layers are built, which takes their memory for a moment, and dropped.

    Raises:
        QCompileError: as :func:`transform`.
    """
    model = check_model(model)
    before = _Snapshot(model)
    try:
        options = {"batch_norm": batch_norm, "activation": activation, "memory": memory}
        configs = read_quadratic(quadratic, **options)
        return _rewrite(model, configs, read_sparse(sparse_output), fuse, example_inputs)[1]
    finally:
        before.restore()


def merge_parallel(model: nn.Module) -> nn.Module:
    """Merge convolutions, or linear layers, that read the same input into one of all channels.

    The branches of a quadratic block become one convolution of 3·C channels and their batch norms
    one batch norm; parallel layers called by hand likewise. Outputs and gradients are equal up to
    rounding. Parameters of merged layers are new and the calls are those of a ``GraphModule``, so
    merge before making the optimiser; the memory levels of merged blocks no longer apply.

    Args:
        model: a module that ``torch.fx.symbolic_trace`` can follow; it stays as it is.

    Returns:
        A copy: a ``torch.fx.GraphModule``, or of the same class if nothing was merged. Its
        ``qcompile_report`` names each group of parallel layers.

    Raises:
        PassError: the model is of a kind that cannot be rewritten, or cannot be traced.
    """
    result = MergeParallel()(_copy(check_model(model)))
    vars(result.model)["qcompile_report"] = result.report
    return result.model


def _rewrite(
    model: nn.Module, configs: list[Quadratic], sparse: list[LSH], fuse: bool, example: Any
) -> tuple[nn.Module, Report]:
    """Measure, trace, run the passes, measure again."""
    if not configs and not sparse and not fuse:
        raise ConfigurationError(
            "transform was asked for nothing: give quadratic=, a form such as 'Quadra', "
            "sparse_output=, True or a qcompile.LSH, or fuse=True."
        )
    inputs = Inputs.of(example)
    report = Report()
    before, hooks = measure_first(model, inputs, report)
    steps: list[Pass[nn.Module]] = []
    if configs or sparse:
        traced = trace(model, inputs, before, hooks=hooks)
        report.notes += _describe(traced)
        # Sparse layers go first: what they take is no longer there to become quadratic.
        steps += [SubstituteOutput(lsh, traced) for lsh in sparse]
        steps += [SubstituteHidden(lsh, traced) for lsh in sparse]
    if configs:
        steps.append(SubstituteQuadratic(configs, traced))
    if fuse:
        steps.append(FuseHadamard())
    outcome = PassManager(steps)(model)
    report.extend(outcome.report)
    _drop_repeats(report)
    if inputs and before:
        after = measure_call(outcome.model, inputs, hooks) if outcome.modified else before
        if isinstance(after, Failure):
            raise PassError(
                f"the model runs on the example inputs, the rewritten model does not. Exclude the "
                f"layer that its code needs as it was, qcompile.Quadratic(exclude=...): {after}"
            ) from after.error
        report.problems += bypassed(report, before, after)
        add_flops(report, before, after)
    return outcome.model, report


def _fit(model: nn.Module, budget: Any, example: Any, options: Mapping[str, Any] | None) -> str:
    """Choose memory levels and tell them."""
    from qcompile.memory import fit_memory

    return fit_memory(model, budget, example, **(options or {})).summary()


def _describe(traced: Trace) -> list[str]:
    failures = [str(failure) for failure in traced.failures]
    if traced.tracer == NONE:
        return [
            *failures,
            "not traced: layers are chosen by the module tree alone; example_inputs= would show "
            "which ones the forward calls",
        ]
    return [*failures, f"traced by {traced.tracer}"]


def _drop_repeats(report: Report) -> None:
    """Leave out that the quadratic pass avoids a layer which the other pass has reported."""
    named = {entry.name for entry in report.entries if entry.reason != IS_SPARSE}
    report.entries = [e for e in report.entries if e.reason != IS_SPARSE or e.name not in named]


def _copy(model: nn.Module) -> nn.Module:
    try:
        return full_copy(model)
    except Exception as error:
        raise PassError(
            f"{type(model).__name__} cannot be copied ({error}): pass inplace=True to rewrite the "
            f"model itself."
        ) from error


class _Snapshot:
    """What passes may change in a module tree: classes, attributes, children."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(m, type(m), dict(vars(m)), dict(m._modules)) for m in model.modules()]

    def restore(self) -> None:
        for module, kind, attributes, children in self._modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)
            if isinstance(module, fx.GraphModule):
                module.recompile()
