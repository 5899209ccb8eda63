"""Exchanges the output layer for one whose active neurons are found by hashing.

    Linear(d, N)  →  LSHLinear(d, N)    same weight and bias, the very same Parameter objects

The output layer is the Linear from which an output of the model is computed by operations
without weights: a softmax, a reshape, a choice of the best, packing into a dict.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from qcompile.errors import PassError, TraceError
from qcompile.passes.base import PassResult
from qcompile.passes.fx.layers import Layer, as_plain, find_layers, obstacle, replace_modules
from qcompile.passes.fx.outputs import Candidate, divide, find_candidates
from qcompile.passes.fx.sparse_layers import ALREADY, SubstituteSparse, is_hashed, is_quadratic
from qcompile.passes.fx.tracing import EXPORT
from qcompile.report import Report
from qcompile.routing import accept_target, keyword

__all__ = ["SubstituteOutput"]


class SubstituteOutput(SubstituteSparse):
    """Substitutes the output layer, and lets the model take ``target=``."""

    what = "output"

    def call(self, model: nn.Module) -> PassResult[nn.Module]:
        """Substitute, and report the layer or why there is none.

        Raises:
            TraceError: the model cannot be traced and ``LSH.where`` names no layer.
            PassError: several layers qualify and ``LSH.where`` does not choose.
        """
        report = Report()
        layers = find_layers(model, self._trace)
        candidates = find_candidates(model, layers, self._trace.flow)
        others: list[Layer] = []
        if self._config.where is None:
            chosen = self._search(layers, candidates, report)
        else:
            chosen, others = self._select(model, layers, candidates, report)
        new = {layer.module: self._build(layer) for layer in chosen}
        reason = f"LSH {self._config.family}, same weights"
        report.entries += [self._entry(layer, reason, "rewritten") for layer in chosen]
        already = any(entry.reason == ALREADY for entry in report.entries)
        if not (new or others or already or report.problems):
            report.problems.append(f"sparse_output: {report.summary()}.")
        if new and model not in new:
            accept_target(model, {layer.name: new[layer.module] for layer in chosen})
            taken = [c for c in candidates if c.layer in chosen]
            report.notes += _describe_call(model, taken)
            report.problems += _repeated_calls(taken)
        return PassResult(replace_modules(model, new), bool(new), report)

    def _search(
        self, layers: list[Layer], candidates: list[Candidate], report: Report
    ) -> list[Layer]:
        """Choose the one large layer that computes an output."""
        from qcompile.nn.lsh import LSHLinear

        large = [x for x in layers if _outputs(x) >= self._config.min_outputs]
        if self._trace.flow is None:
            # What an earlier run has done shows without a trace.
            candidates = [Candidate(x) for x in layers if isinstance(x.module, LSHLinear)]
        if self._trace.flow is None and large and not candidates:
            failures = self._trace.failures
            raise self._undecidable(large) from (failures[-1].error if failures else None)
        wide = [c for c in candidates if c.layer in large]
        # Keys and values that a language model hands out for its cache come from wide layers too.
        wide = [c for c in wide if c.is_last_axis] or wide
        if len(wide) > 1:
            names = ", ".join(repr(c.layer.label) for c in wide)
            raise PassError(
                f"sparse_output: {names} all compute an output and have at least "
                f"{self._config.min_outputs:,} of them; name the one to take, or several: "
                f"LSH(where={wide[0].layer.label!r})."
            )
        for candidate in wide or candidates:
            reason = self._refusal(candidate.layer)
            if reason is None:
                return [candidate.layer]
            report.entries.append(self._entry(candidate.layer, reason, "skipped"))
        if not candidates and self._trace.flow is None:
            report.problems.append(
                f"sparse_output: no Linear has {self._config.min_outputs:,} outputs or more, "
                f"LSH.min_outputs; LSH(where=...) takes a layer of any size."
            )
        elif not candidates:
            report.problems.append(
                "sparse_output: no Linear computes an output without further weights behind it; "
                "name the layer by LSH(where=...)."
            )
        return []

    def _select(
        self, model: nn.Module, layers: list[Layer], candidates: list[Candidate], report: Report
    ) -> tuple[list[Layer], list[Layer]]:
        """Choose what ``where`` selects as output layers; return these and the hidden ones."""
        division = divide(self._config.where, model, layers, candidates)
        refusals = {x: self._refusal(x, any_size=True) for x in division.outputs}
        refusals |= dict.fromkeys(division.beside, "it does not compute an output")
        report.entries += [
            self._entry(layer, reason, "skipped") for layer, reason in refusals.items() if reason
        ]
        report.problems += division.unmatched
        return [layer for layer in division.outputs if not refusals[layer]], division.hidden

    def _refusal(self, layer: Layer, any_size: bool = False) -> str | None:
        """Say why a layer cannot become the sparse output layer, if it cannot."""
        if is_hashed(layer.module):
            return ALREADY
        if is_quadratic(layer.module):
            return "quadratic: ask for sparse_output in the same call, or exclude the layer there"
        if not isinstance(layer.module, nn.Linear):
            return f"{type(layer.module).__name__} is not a Linear"
        if not any_size and layer.module.out_features < self._config.min_outputs:
            return (
                f"{layer.module.out_features:,} outputs, fewer than LSH.min_outputs="
                f"{self._config.min_outputs:,}; LSH(where={layer.name!r}) takes it all the same"
            )
        return obstacle(layer)

    def _undecidable(self, large: list[Layer]) -> TraceError:
        failures = self._trace.failures
        tried = "; ".join(str(failure) for failure in failures)
        names = ", ".join(repr(layer.label) for layer in large[:8])
        inputs = "" if any(f.tracer == EXPORT for f in failures) else "Pass example_inputs=, or n"
        return TraceError(
            f"sparse_output: cannot tell which layer computes the output, since the model cannot "
            f"be traced: {tried}. {inputs or 'N'}ame the layer: LSH(where=...); "
            f"large enough are {names}."
        )

    def _build(self, layer: Layer) -> nn.Module:
        from qcompile.nn.lsh import LSHLinear

        def build() -> nn.Module:
            return LSHLinear.from_linear(as_plain(layer.module, nn.Linear), self._config)

        return self._built(layer, build)


def _outputs(layer: Layer) -> int:
    """Return the width of a Linear, 0 for any other layer."""
    return layer.module.out_features if isinstance(layer.module, nn.Linear) else 0


def _repeated_calls(candidates: list[Candidate]) -> Iterator[str]:
    """Name the layers that get a part of the examples in each of several calls."""
    for candidate in candidates:
        if candidate.calls > 1:
            name = candidate.layer.label
            yield (
                f"sparse_output: the forward calls {name!r} {candidate.calls} times, and a target "
                f"given to the model reaches the first call only: let the forward call it once, "
                f"on all examples, or give the target to the layer itself."
            )


def _describe_call(model: nn.Module, candidates: list[Candidate]) -> Iterator[str]:
    """Say how to train the model, as far as it is not obvious."""
    word = keyword(type(model))
    if word != "target":
        yield f"the model's forward has a target of its own: call model(..., {word}=labels)"
    for candidate in candidates:
        if candidate.behind:
            operations = ", ".join(candidate.behind)
            yield f"with {word}= the forward ends at {candidate.layer.label!r}, before {operations}"
