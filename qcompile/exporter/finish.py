"""The last steps of every export: write, check, verify, measure, and only then give the name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from qcompile.calibration.choice import Choice
from qcompile.errors import ExportError, PluginError
from qcompile.exporter.heads import measure_heads
from qcompile.exporter.result import ExportResult
from qcompile.exporter.verify import Difference, Expectation, compare
from qcompile.exporter.writing import Staging, check, describe, save
from qcompile.passes.onnx.replace import Head
from qcompile.report import Report
from qcompile.running.latency import interleaved
from qcompile.running.sessions import Feeds, Session


@dataclass
class Plan:
    """A rewritten model on its way to a file.

    Args:
        model: the model.
        report: what the passes did.
        heads: the layers that were replaced.
        top_k: how many scores are handed out.
        size: bytes of the source.
        external_above: bytes of weights from which they go to a data file.
        source: the file it was made from; its own defects are not held against the result.
        choices: what calibration chose, by name of the layer.
    """

    model: ir.Model
    report: Report
    heads: list[Head]
    top_k: int | None
    size: int
    external_above: int
    source: Path
    choices: Mapping[str, Choice] = field(default_factory=dict)


@dataclass
class Reference:
    """What the result is held against.

    Args:
        cases: inputs, and what is expected on them.
        before: ONNX file of the model as it was, for the latency.
        calls: inputs to time it on; those of the first case where there are none.
    """

    cases: Sequence[tuple[Feeds, Sequence[Expectation]]]
    before: Path
    calls: Sequence[Feeds] = ()


def finish(
    plan: Plan,
    stage: Staging,
    reference: Reference | None,
    *,
    verify: bool,
    measure: bool,
    say: Callable[[str], None],
) -> ExportResult:
    """Write ``plan`` into the staging folder, hold it against ``reference``, and publish it.

    Raises:
        ExportError: the file fails onnx.checker, does not load, or differs from the reference.
    """
    say("writing")
    describe(plan.model, plan.report, plan.choices, plan.heads)
    save(plan.model, stage, plan.external_above)
    _check(plan, stage)
    result = ExportResult(
        path=stage.output,
        data_path=None,
        report=plan.report,
        heads=plan.heads,
        opset=plan.model.opset_imports[""],
        ir_version=plan.model.ir_version,
        top_k=plan.top_k,
        choices=dict(plan.choices),
        size=(plan.size, sum(f.stat().st_size for f in (stage.path, stage.data) if f.exists())),
    )
    if reference is not None and verify:
        say("verifying")
        result.differences = _verify(stage, reference, plan)
    if reference is not None and measure:
        say("measuring")
        result.latency = _measure(stage, reference, plan)
        before, after = result.latency.get("head", (0.0, 0.0))
        if after > 1.1 * before:
            plan.report.notes.append(
                f"on these inputs the layer alone became slower: {before:.3f} → {after:.3f} ms; "
                "what it costs depends on how sure the scores are, so try real inputs (--inputs)"
            )
    result.path, result.data_path = stage.publish()
    return result


def _check(plan: Plan, stage: Staging) -> None:
    wrong = check(stage.path)
    if wrong is None:
        return
    if check(plan.source) is None:
        raise ExportError(f"{stage.output}: the result fails onnx.checker: {wrong}")
    plan.report.notes.append(f"the source does not pass onnx.checker, nor does the result: {wrong}")


def _verify(stage: Staging, reference: Reference, plan: Plan) -> list[Difference]:
    differences = []
    for variant in ("plugin", "functions"):
        session = _session(stage.path, variant, plan.report)
        if session is None:
            continue
        for feeds, expected in reference.cases:
            differences += compare(expected, session.run(feeds), variant)
    return differences


def _measure(stage: Staging, reference: Reference, plan: Plan) -> dict[str, tuple[float, float]]:
    after = _session(stage.path, "plugin", plan.report, literal=False)
    if after is None:
        return {}
    before = Session(reference.before, plugin=False, literal=False)
    calls = reference.calls or [reference.cases[0][0]]
    slow, fast = interleaved(before.cycled(calls), after.cycled(calls))
    found = {"model": (slow, fast)}
    if len(plan.heads) == 1:
        head = measure_heads(reference.before, stage, plan.heads[0], calls)
        if head is not None:
            found["head"] = head
    return found


def _session(path: Path, variant: str, report: Report, literal: bool = True) -> Session | None:
    try:
        return Session(path, plugin=variant == "plugin", literal=literal)
    except PluginError as error:
        note = f"not run with the plugin: {error}"
        if note not in report.notes:
            report.notes.append(note)
        return None
