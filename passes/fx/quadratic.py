"""Exchanges first-order layers for quadratic neurons.

    Linear(n, N)       →  QuadraticLinear(n, N, form=…)
    Conv2d(C, O, k)    →  QuadraticConv2d(C, O, k, form=…), likewise 1d and 3d
    Conv2d, BatchNorm2d, ReLU  →  QuadraticBlock, Identity, Identity   where a batch norm is moved

Every Linear and convolution that the forward calls is eligible, depth-wise convolutions and the
classifier included; ``where`` and ``exclude`` narrow that down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from qcompile.config import Quadratic
from qcompile.errors import ConfigurationError
from qcompile.passes.base import Pass, PassResult
from qcompile.passes.fx.followers import Followers, Found
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
        followers = Followers(model, self._trace)
        for layer in find_layers(model, self._trace):
            config, reason = self._decide(layer, selections)
            if config is None:
                report.entries.append(self._entry(layer.label, (layer.module,), reason))
                continue
            self._substitute(_Site.of(layer, config, followers), config, new, report)
        self._complain(model, selections, report)
        return PassResult(replace_modules(model, new), bool(new), report)

    def _substitute(
        self, site: _Site, config: Quadratic, new: dict[nn.Module, nn.Module], report: Report
    ) -> None:
        """Enter what takes the place of a layer and of what is moved or dropped with it."""
        label, norm, activation = site.layer.label, site.norm.module, site.activation
        before = [site.layer.module]
        reason = _outcome(config, norm is not None)
        if norm is None:
            new[site.layer.module] = _build(site.layer, config)
            if site.norm.reason:
                reason += f"; {site.norm.reason}"
        else:
            kept = activation.module if config.activation == "keep" else None
            new[site.layer.module] = _build_block(site.layer, norm, kept, config)
            before += [norm] if kept is None else [norm, kept]
            new.update(dict.fromkeys(before[1:], nn.Identity()))
        entry = self._entry(label, before, reason, new[site.layer.module])
        report.entries.append(entry)
        if config.activation == "drop" and activation.name:
            dropped = activation.module
            if dropped is not None:
                new[dropped] = nn.Identity()
                gone = self._entry(activation.name, (dropped,), "dropped", new[dropped])
                report.entries.append(gone)
            else:
                report.notes.append(
                    f"the activation {activation.name!r} behind {label!r} stays: "
                    f"{activation.reason}"
                )

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

    def _entry(
        self,
        label: str,
        before: Sequence[nn.Module],
        reason: str,
        after: nn.Module | None = None,
    ) -> Entry:
        """Describe modules that became one, or one that was left alone."""
        count = sum(_count(module) for module in before)
        return Entry(
            pass_name=self.name,
            name=label,
            kind=" + ".join(type(module).__name__ for module in before),
            status="skipped" if after is None else "rewritten",
            reason=reason,
            parameters=(count, count if after is None else _count(after)),
        )


@dataclass(frozen=True)
class _Site:
    """A layer to exchange, and what follows it."""

    layer: Layer
    norm: Found
    activation: Found

    @classmethod
    def of(cls, layer: Layer, config: Quadratic, followers: Followers) -> _Site:
        """Look at what follows, as far as the configuration needs it."""
        moves = config.batch_norm != "none"
        if not moves and config.activation == "keep":
            return cls(layer, Found(), Found())
        norm = followers.norm(layer.module)
        activation = followers.activation(norm.module or layer.module)
        if moves and norm.module is None and not norm.reason:
            norm = Found(reason="no batch norm follows")
        return cls(layer, norm if moves else Found(), activation)


def _count(module: nn.Module) -> int:
    """Count the weights of a module, as far as their shape is known."""
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


def _preserves(config: Quadratic) -> bool:
    from qcompile.nn.quadratic import PRESERVING_FORMS

    return config.init != "kaiming" and config.form in PRESERVING_FORMS


def _outcome(config: Quadratic, block: bool = False) -> str:
    norms = {"both": "branch and outer"}.get(config.batch_norm, config.batch_norm)
    what = f"{config.form} block, {norms} batch norm" if block else config.form
    if not _preserves(config):
        fallen_back = config.init == "auto"
        return f"{what}, kaiming" + (" (the form cannot preserve)" if fallen_back else "")
    if block and config.batch_norm == "both":
        return f"{what}, branches preserved (the outer batch norm normalises again)"
    return f"{what}, preserved"


def _build(layer: Layer, config: Quadratic) -> nn.Module:
    from qcompile.nn.quadratic import from_first_order

    with _naming(layer):
        return from_first_order(as_plain(layer.module, *FIRST_ORDER), config)


def _build_block(
    layer: Layer, norm: nn.Module, activation: nn.Module | None, config: Quadratic
) -> nn.Module:
    from qcompile.nn.quadratic import block_from_first_order

    with _naming(layer):
        plain = as_plain(layer.module, *FIRST_ORDER)
        return block_from_first_order(plain, norm, activation, config)


@contextmanager
def _naming(layer: Layer) -> Iterator[None]:
    """Say in an error which layer it is about."""
    try:
        yield
    except ConfigurationError as error:
        kind = type(layer.module).__name__
        raise ConfigurationError(f"layer {layer.label!r} ({kind}): {error}") from error
