"""Exchanges first-order layers for quadratic neurons.

    Linear(n, N)       →  QuadraticLinear(n, N, form=…)
    Conv2d(C, O, k)    →  QuadraticConv2d(C, O, k, form=…), likewise 1d and 3d

Every Linear and convolution that the forward calls is eligible, depth-wise convolutions and the
classifier included; ``where`` and ``exclude`` narrow that down.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qcompile.config import Quadratic
from qcompile.errors import ConfigurationError
from qcompile.passes.base import Pass, PassResult
from qcompile.passes.fx.layers import (
    FIRST_ORDER,
    Layer,
    as_plain,
    find_layers,
    obstacle,
    replace_modules,
)
from qcompile.passes.fx.selection import NOT_SELECTED, Selection
from qcompile.passes.fx.tracing import Trace
from qcompile.report import Entry, Report

__all__ = ["ALREADY", "IS_SPARSE", "SubstituteQuadratic"]

ALREADY = "already quadratic"
IS_SPARSE = "LSH-sparse layer"


class SubstituteQuadratic(Pass[nn.Module]):
    """Substitutes quadratic layers; nothing changes if one of them cannot be built.

    Args:
        configs: what to substitute; the first whose selectors take a layer decides its form.
        trace: of the model that the pass will be called on.
    """

    def __init__(self, configs: Sequence[Quadratic], trace: Trace) -> None:
        self._configs = tuple(configs)
        self._trace = trace

    @property
    def name(self) -> str:
        """The name that reports and errors use."""
        return "quadratic"

    def call(self, model: nn.Module) -> PassResult[nn.Module]:
        """Substitute, and report every layer that holds a weight matrix.

        Raises:
            ConfigurationError: a selector is malformed, a form cannot preserve, or a layer of
                form T1 would exceed its memory limit; the message names the layer.
        """
        selections = [Selection(config.where, config.exclude) for config in self._configs]
        report = Report()
        new: dict[nn.Module, nn.Module] = {}
        for layer in find_layers(model, self._trace):
            config, reason = self._decide(layer, selections)
            if config is not None:
                new[layer.module] = _build(layer, config)
            report.entries.append(self._entry(layer, reason, new.get(layer.module)))
        self._complain(model, selections, report)
        return PassResult(replace_modules(model, new), bool(new), report)

    def _complain(self, model: nn.Module, selections: Sequence[Selection], report: Report) -> None:
        """Report what was asked for and not done, unless an earlier run did it."""
        if not report.modified and any(entry.reason == ALREADY for entry in report.entries):
            return
        modules = dict(model.named_modules())
        for selection in selections:
            report.problems += selection.unmatched(modules)
        if not report.modified and not report.problems:
            report.problems.append(f"quadratic: {report.summary()}.")

    def _decide(
        self, layer: Layer, selections: Sequence[Selection]
    ) -> tuple[Quadratic | None, str]:
        """Choose a configuration for one layer, or say why it is left alone."""
        from qcompile.nn.hashed import Hashed
        from qcompile.nn.quadratic import QuadraticLayer

        # Every selection sees every layer, so that it knows whether it ever matched.
        answers = [selection.refuses(layer.names, layer.module) for selection in selections]
        if isinstance(layer.module, QuadraticLayer):
            return None, ALREADY
        if isinstance(layer.module, Hashed):
            return None, IS_SPARSE
        if None not in answers:
            return None, next((a for a in answers if a and a != NOT_SELECTED), NOT_SELECTED)
        reason = obstacle(layer)
        config = self._configs[answers.index(None)]
        if reason is None and layer.tied and not _preserves(config):
            reason = f"a fresh start would break the tie of its weight with {layer.tied[0]}"
        return (None, reason) if reason else (config, _outcome(config))

    def _entry(self, layer: Layer, reason: str, new: nn.Module | None) -> Entry:
        before = layer.parameters
        after = before if new is None else sum(parameter.numel() for parameter in new.parameters())
        return Entry(
            pass_name=self.name,
            name=layer.label,
            kind=type(layer.module).__name__,
            status="skipped" if new is None else "rewritten",
            reason=reason,
            parameters=(before, after),
        )


def _preserves(config: Quadratic) -> bool:
    from qcompile.nn.quadratic import PRESERVING_FORMS

    return config.init != "kaiming" and config.form in PRESERVING_FORMS


def _outcome(config: Quadratic) -> str:
    if _preserves(config):
        return f"{config.form}, preserved"
    fallen_back = config.init == "auto"
    return f"{config.form}, kaiming" + (" (the form cannot preserve)" if fallen_back else "")


def _build(layer: Layer, config: Quadratic) -> nn.Module:
    from qcompile.nn.quadratic import from_first_order

    try:
        return from_first_order(as_plain(layer.module, *FIRST_ORDER), config)
    except ConfigurationError as error:
        kind = type(layer.module).__name__
        raise ConfigurationError(f"layer {layer.label!r} ({kind}): {error}") from error
