"""The network under search: its quadratic layers, their shares, and edits of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.builder.result import Importance
from qcompile.flops import measure
from qcompile.nn.quadratic import QuadraticBlock, QuadraticLayer
from qcompile.nn.quadratic.formulas import FORMULAS
from qcompile.nn.quadratic.revert import to_first_order

__all__ = ["edit", "importance", "masked", "possible_edits", "quadratic_layers", "size"]

Metric = Callable[[nn.Module], float]


def quadratic_layers(model: nn.Module) -> dict[str, QuadraticLayer | QuadraticBlock]:
    """Return the quadratic layers of a model by name, in order; those of blocks are the blocks."""
    within = {id(m.layer) for m in model.modules() if isinstance(m, QuadraticBlock)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuadraticLayer | QuadraticBlock) and id(module) not in within
    }


def size(model: nn.Module, example: Tensor) -> tuple[int, int]:
    """Return parameters, and operations for one example."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return count, _flops(model, example)[""]


def _flops(model: nn.Module, example: Tensor) -> dict[str, int]:
    return measure(copy.deepcopy(model).eval(), (example[:1],), {}).flops


@contextmanager
def masked(layer: nn.Module) -> Iterator[None]:
    """Let a layer return zeros. Not dropout, which would scale what is left."""
    handle = layer.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    try:
        yield
    finally:
        handle.remove()


def importance(
    model: nn.Module,
    metric: Metric,
    reference: float,
    example: Tensor,
    told: Callable[[str], None],
) -> list[Importance]:
    """Rank the quadratic layers of a trained model, the first to go first.

    RI = P_M · P_W / δ_A (QuadraLib, section 4.4), infinite where the metric does not fall; of equal
    ones the larger layer goes first.

    Args:
        model: trained.
        metric: of a model; higher is better.
        reference: that of the model itself.
        example: inputs of at least one example.
        told: called with each layer's name before it is masked.
    """
    flops = _flops(model, example)
    total = sum(parameter.numel() for parameter in model.parameters())
    found = []
    for name, layer in quadratic_layers(model).items():
        told(name)
        with masked(layer):
            loss = reference - metric(model)
        parameters = sum(p.numel() for p in layer.parameters()) / total
        work = flops.get(name, 0) / max(flops[""], 1)
        index = parameters * work / loss if loss > 0 else math.inf
        found.append(Importance(name, parameters, work, loss, index))
    return sorted(found, key=lambda each: (-each.index, -each.parameters, each.layer))


def possible_edits(model: nn.Module, example: Tensor) -> dict[str, list[str]]:
    """Return what may be done to each quadratic layer, the boldest first.

    A layer can be removed if it returns what has the shape of its input, and reverted if its form
    contains a first-order neuron.
    """
    found: dict[str, list[str]] = {name: [] for name in quadratic_layers(model)}
    work = copy.deepcopy(model).eval()

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if inputs[0].shape == output.shape and "remove" not in found[name]:
                found[name].append("remove")

        return hook

    for name, layer in quadratic_layers(work).items():
        layer.register_forward_hook(look(name))
    with torch.no_grad():
        work(example[:1])
    for name, layer in quadratic_layers(model).items():
        if FORMULAS[layer.form].keeps:
            found[name].append("revert")
    return found


def edit(model: nn.Module, action: str, name: str) -> nn.Module:
    """Remove a layer, or revert it, in place; return the model, which may be that layer itself."""
    layer = model.get_submodule(name)
    new = nn.Identity() if action == "remove" else to_first_order(layer)  # type: ignore[arg-type]
    if not name:
        return new
    names = [n for n, module in model.named_modules(remove_duplicate=False) if module is layer]
    for each in names:
        parent, _, child = each.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model
