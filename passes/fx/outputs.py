"""Which layers compute a model's output, and which of the others a selector means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qcompile.passes.fx.dataflow import Dataflow, Value
from qcompile.passes.fx.layers import Layer
from qcompile.passes.fx.selection import Selection, selectors

__all__ = ["Candidate", "Division", "divide", "find_candidates"]


@dataclass
class Candidate:
    """A layer that computes an output.

    Args:
        layer: the layer.
        behind: operations between it and the output, in order.
        calls: how often the forward calls it on the way to an output.
        is_last_axis: whether an output's last axis is known to be as long as the layer is wide.
    """

    layer: Layer
    behind: dict[str, None] = field(default_factory=dict)
    calls: int = 0
    is_last_axis: bool = False


def find_candidates(
    model: nn.Module, layers: list[Layer], flow: Dataflow | None
) -> list[Candidate]:
    """Find the linear layers that an output is computed from without further weights."""
    linear = {layer.module: layer for layer in layers if hasattr(layer.module, "out_features")}
    found: dict[Layer, Candidate] = {}
    for output in flow.outputs if flow else ():
        behind: dict[str, None] = {}
        reached = Counter(_reach(model, linear, output, behind))
        for layer, calls in reached.items():
            candidate = found.setdefault(layer, Candidate(layer))
            candidate.calls = max(candidate.calls, calls)
            candidate.behind.update(dict.fromkeys(reversed(behind)))
            last = output.shape[-1:] if output.shape else ()
            candidate.is_last_axis |= last == (layer.module.out_features,)
    return list(found.values())


def _reach(
    model: nn.Module, linear: dict[nn.Module, Layer], output: Value, behind: dict[str, None]
) -> Iterator[Layer]:
    """Walk back from ``output`` and yield the layers met; ``behind`` collects what is passed."""
    seen: set[int] = set()
    waiting = [output]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        layer = linear.get(model.get_submodule(value.owner))
        if layer is not None:
            yield layer
        elif not value.mixes and not value.parameter:
            if value.operation not in ("getitem", "input", "attribute", "Identity"):
                behind.setdefault(value.operation)
            waiting.extend(reversed(value.inputs))


@dataclass
class Division:
    """What the selectors of ``LSH.where`` select.

    Args:
        outputs: layers that compute an output.
        hidden: others, by a selector that selects none which computes an output.
        beside: others, by a selector that selects such a layer, too.
        unmatched: what is wrong with selectors that select nothing.
    """

    outputs: list[Layer]
    hidden: list[Layer]
    beside: list[Layer]
    unmatched: list[str]


def divide(
    where: Any, model: nn.Module, layers: list[Layer], candidates: list[Candidate]
) -> Division:
    """Tell the output layers that ``where`` selects from hidden ones.

    A selector that selects an output layer, such as ``"*"``, means that alone. Where it is not
    known what computes the output, whatever is selected does, except for convolutions.

    Args:
        where: globs, types or predicates; one or several.
        model: the model.
        layers: its layers.
        candidates: of these, the ones known to compute an output.

    Raises:
        ConfigurationError: a selector is malformed.
    """
    computing = {candidate.layer for candidate in candidates}
    # Each layer by name → role; of several selectors' opinions the last in this order counts.
    roles: dict[Layer, str] = {}
    order = ("beside", "hidden", "outputs")
    unmatched = []
    for selector in selectors("where", where):
        selection = Selection(selector)
        selected = [x for x in layers if selection.refuses(x.names, _before(x.module)) is None]
        unmatched += selection.unmatched(dict(model.named_modules()))
        among = any(layer in computing for layer in selected)
        for layer in selected:
            role = _role(layer, layer in computing, among, bool(computing))
            roles[layer] = max(role, roles.get(layer, role), key=order.index)
    if not selectors("where", where):
        unmatched += Selection(where).unmatched({})

    def having(role: str) -> list[Layer]:
        return [layer for layer in layers if roles.get(layer) == role]

    return Division(having("outputs"), having("hidden"), having("beside"), unmatched)


def _before(module: nn.Module) -> nn.Module:
    """Return what a sparse layer has replaced: selectors mean the model as it was."""
    kind = getattr(module, "replaces", None)
    if kind is None:
        return module
    plain: nn.Module = kind.__new__(kind)
    vars(plain).update(vars(module))
    return plain


def _role(layer: Layer, computes: bool, among: bool, known: bool) -> str:
    if computes:
        return "outputs"
    if among:
        return "beside"
    return "hidden" if known or isinstance(layer.module, nn.Conv2d) else "outputs"
