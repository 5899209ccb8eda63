"""Exchanges hidden layers for ones that compute few of their neurons for each example.

Linear(d, H)     →  LSHHidden(d, H)     same weight and bias, the very same Parameter objects
Conv2d(C, O, k)  →  LSHConv2d(C, O, k)  likewise; the neurons are filters
"""

from __future__ import annotations

from torch import nn

from qcompile.passes.base import PassResult
from qcompile.passes.fx.layers import Layer, as_plain, find_layers, obstacle, replace_modules
from qcompile.passes.fx.outputs import divide, find_candidates
from qcompile.passes.fx.sparse_layers import ALREADY, SubstituteSparse, is_hashed, is_quadratic
from qcompile.report import Report, Status

__all__ = ["SubstituteHidden"]


class SubstituteHidden(SubstituteSparse):
    """Substitutes the hidden layers that ``LSH.where`` names; without it none."""

    what = "hidden"

    def call(self, model: nn.Module) -> PassResult[nn.Module]:
        """Substitute, and report each layer that was named.

        Raises:
            QCompileError: the configuration does not fit a layer; the message names it.
        """
        report = Report()
        new: dict[nn.Module, nn.Module] = {}
        if self._config.where is not None:
            layers = find_layers(model, self._trace)
            candidates = find_candidates(model, layers, self._trace.flow)
            for layer in divide(self._config.where, model, layers, candidates).hidden:
                reason = _refusal(layer)
                if reason is None:
                    new[layer.module] = self._build(layer)
                status: Status = "skipped" if reason else "rewritten"
                report.entries.append(self._entry(layer, reason or self._gain(layer), status))
        refused = [entry for entry in report.skipped if entry.reason != ALREADY]
        if refused and not new:
            report.problems.append(f"{self.name}: {report.summary()}.")
        return PassResult(replace_modules(model, new), bool(new), report)

    def _gain(self, layer: Layer) -> str:
        neurons = len(layer.module.weight)  # type: ignore[arg-type]
        return (
            f"LSH {self._config.family}, {min(self._config.active, neurons):,} of {neurons:,} "
            "neurons an example, same weights"
        )

    def _build(self, layer: Layer) -> nn.Module:
        from qcompile.nn.lsh_conv import LSHConv2d
        from qcompile.nn.lsh_hidden import LSHHidden

        def build() -> nn.Module:
            if isinstance(layer.module, nn.Conv2d):
                return LSHConv2d.from_conv(as_plain(layer.module, nn.Conv2d), self._config)
            return LSHHidden.from_linear(as_plain(layer.module, nn.Linear), self._config)

        return self._built(layer, build)


def _refusal(layer: Layer) -> str | None:
    """Say why a layer cannot become a sparse hidden one, if it cannot."""
    module = layer.module
    if is_hashed(module):
        return ALREADY
    if is_quadratic(module):
        return "quadratic: exclude the layer there"
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"{type(module).__name__} is neither a Linear nor a Conv2d"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"its {module.groups} groups have no patches of all channels to hash"
    return obstacle(layer)
