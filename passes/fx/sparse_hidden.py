"""Exchanges hidden layers for ones that compute few of their neurons for each example.

Linear(d, H)     →  LSHHidden(d, H)     same weight and bias, the very same Parameter objects
Conv2d(C, O, k)  →  LSHConv2d(C, O, k)  likewise; the neurons are filters
"""

from __future__ import annotations

from torch import nn

from qcompile.config import LSH
from qcompile.errors import QCompileError
from qcompile.passes.base import Pass, PassResult
from qcompile.passes.fx.layers import Layer, as_plain, find_layers, obstacle, replace_modules
from qcompile.passes.fx.outputs import divide, find_candidates
from qcompile.passes.fx.sparse_output import ALREADY
from qcompile.passes.fx.tracing import Trace
from qcompile.report import Entry, Report, Status

__all__ = ["SubstituteHidden"]


class SubstituteHidden(Pass[nn.Module]):
    """Substitutes the hidden layers that ``LSH.where`` names; without it none.

    Args:
        config: how to hash, and which layers to take.
        trace: of the model that the pass will be called on.
    """

    def __init__(self, config: LSH, trace: Trace) -> None:
        self._config = config
        self._trace = trace

    @property
    def name(self) -> str:
        """The name that reports and errors use."""
        return "sparse_hidden"

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
                    new[layer.module] = _build(layer, self._config)
                report.entries.append(self._entry(layer, reason))
        refused = [entry for entry in report.skipped if entry.reason != ALREADY]
        if refused and not new:
            report.problems.append(f"{self.name}: {report.summary()}.")
        return PassResult(replace_modules(model, new), bool(new), report)

    def _entry(self, layer: Layer, refusal: str | None) -> Entry:
        config, count = self._config, layer.parameters
        reason = refusal or (
            f"LSH {config.family}, {min(config.active, _neurons(layer)):,} of "
            f"{_neurons(layer):,} neurons an example, same weights"
        )
        status: Status = "skipped" if refusal else "rewritten"
        kind = type(layer.module).__name__
        return Entry(self.name, layer.label, kind, status, reason, (count, count))


def _neurons(layer: Layer) -> int:
    """Return the rows of the weight, which are neurons or filters."""
    return len(layer.module.weight)  # type: ignore[arg-type]


def _refusal(layer: Layer) -> str | None:
    """Say why a layer cannot become a sparse hidden one, if it cannot."""
    from qcompile.nn.hashed import Hashed
    from qcompile.nn.quadratic import QuadraticLayer

    module = layer.module
    if isinstance(module, Hashed):
        return ALREADY
    if isinstance(module, QuadraticLayer):
        return "quadratic: exclude the layer there"
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return f"{type(module).__name__} is neither a Linear nor a Conv2d"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"its {module.groups} groups have no patches of all channels to hash"
    return obstacle(layer)


def _build(layer: Layer, config: LSH) -> nn.Module:
    from qcompile.nn.lsh_conv import LSHConv2d
    from qcompile.nn.lsh_hidden import LSHHidden

    try:
        if isinstance(layer.module, nn.Conv2d):
            return LSHConv2d.from_conv(as_plain(layer.module, nn.Conv2d), config)
        return LSHHidden.from_linear(as_plain(layer.module, nn.Linear), config)
    except QCompileError as error:
        raise type(error)(f"hidden layer {layer.label!r}: {error}") from error
