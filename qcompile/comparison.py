"""One call of a model, before and after it is rewritten: layers that are called, operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from qcompile.flops import Measurement, measure
from qcompile.passes.fx.inputs import Inputs
from qcompile.passes.fx.layers import ROOT
from qcompile.passes.fx.tracing import Failure, locate, scratch_copy
from qcompile.report import Report

__all__ = ["add_flops", "bypassed", "measure_call", "measure_first"]


def measure_first(
    model: nn.Module, inputs: Inputs | None, report: Report
) -> tuple[Measurement | None, bool]:
    """Return what one call does, if there are inputs that fit, and whether it takes hooks.

    Once called, models of transformers collect hidden states through hooks of their own.
    """
    if inputs is None:
        return None, False
    failures = []
    for hooks in (False, True):
        found = measure_call(model, inputs, hooks)
        if isinstance(found, Measurement):
            return found, hooks
        failures.append(found)
    report.notes += [f"operations not counted: {failure}" for failure in failures[:1]]
    return None, False


def measure_call(model: nn.Module, inputs: Inputs, hooks: bool) -> Measurement | Failure:
    """Call a copy of the model once."""
    copied = model
    try:
        copied = scratch_copy(model, hooks=hooks)
        return measure(copied, inputs.args, inputs.kwargs)
    except Exception as error:  # a model's forward may raise anything at all
        return locate("one call on a copy", error, copied)


def bypassed(report: Report, before: Measurement, after: Measurement) -> list[str]:
    """Name the new layers that the forward passes by, since it holds on to the old ones."""
    return [
        f"{entry.pass_name}: the forward still calls the old layer {entry.name!r}, which it "
        f"reaches by a list, a dict or a variable instead of the module tree: use nn.ModuleList "
        f"or nn.ModuleDict, or exclude the layer."
        for entry in report.rewritten
        if entry.name in before.called and entry.name not in after.called
    ]


def add_flops(report: Report, before: Measurement, after: Measurement) -> None:
    """Enter what each layer computes in one call; a layer that is not called computes nothing."""

    def with_flops(entry: Any) -> Any:
        name = "" if entry.name == ROOT else entry.name
        return replace(entry, flops=(before.flops.get(name, 0), after.flops.get(name, 0)))

    report.entries = [with_flops(entry) for entry in report.entries]
    report.notes.append(
        f"floating-point operations of one call: {before.flops['']:,} before, "
        f"{after.flops['']:,} after"
    )
