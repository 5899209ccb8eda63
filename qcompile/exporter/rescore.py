"""Lets the output layers of a rewritten model keep their rows in a smaller form."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qcompile import ops
from qcompile.config import choose
from qcompile.errors import ExportError
from qcompile.passes.onnx.functions import MIN_OPSET_OF_STORED, function_for
from qcompile.passes.onnx.head import store_rows, why_not_stored
from qcompile.passes.onnx.replace import Head
from qcompile.report import Report

_MEANING = {
    "bf16": "rounded to bfloat16: answers are those of the rounded rows, whose scores are off by "
    "2^-9 of the sum of |weight · activation| at most",
    "none": "rounded to eight bits: answers are those of the rounded rows, whose scores are off by "
    "1/254 of a row's largest weight times the sum of |activation| at most",
}
_INEXACT = {"bf16": 1e-2, "none": 2e-2}
"""What verification allows, relative to the largest score."""


def check_rescore(rescore: str) -> None:
    """Refuse a form that there is not.

    Raises:
        ConfigurationError: names those that there are.
    """
    choose("rescore", rescore, ops.RESCORE)


def keep_rows(model: ir.Model, heads: Sequence[Head], rescore: str, report: Report) -> None:
    """Store the rows of the layers that hand out their best as ``rescore`` says.

    Args:
        model: rewritten, its indexes chosen.
        heads: the layers that were replaced; ``rescore`` and ``inexact`` of those are set.
        rescore: one of :data:`qcompile.ops.RESCORE`.
        report: gets a note for each layer.

    Raises:
        ExportError: the model's opset cannot hold the function body.
        DataError: cells do without their rows, or a weight is beyond bfloat16.
    """
    if rescore == "fp32":
        return
    nodes = {str(node.name): node for node in model.graph}
    stored: list[Head] = []
    for head in heads:
        reason: str | None = f"{head.became} needs every score"
        if head.became == ops.LINEAR_TOP_K.name:
            reason = why_not_stored(nodes[head.node])
        if reason is None:
            stored.append(head)
        else:
            report.notes.append(f"{head.name!r} keeps its rows in float32: {reason}")
    whole = [head for head in heads if head.became == ops.LINEAR_TOP_K.name]
    if rescore == "none" and len(stored) < len(whole):
        # The body without the plugin is one for all of them.
        report.notes.append("the other layers keep theirs, too, as all have one function body")
        return
    if not stored:
        return
    opset = model.opset_imports[""]
    if opset < MIN_OPSET_OF_STORED:
        raise ExportError(
            f"rescore {rescore!r} needs opset {MIN_OPSET_OF_STORED} or later, the model has "
            f"{opset}; convert it with onnx.version_converter.convert_version."
        )
    for head in stored:
        store_rows(model.graph, nodes[head.node], rescore)
        head.rescore = rescore
        head.inexact = max(head.inexact, _INEXACT[rescore])
        report.notes.append(f"{head.name!r} has its rows {_MEANING[rescore]}")
    log_sum = any(len(nodes[head.node].outputs) > 2 for head in whole)
    function = function_for(ops.LINEAR_TOP_K, opset, log_sum=log_sum, rescore=rescore)
    model.functions[function.identifier()] = function
