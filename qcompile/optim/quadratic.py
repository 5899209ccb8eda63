"""Training settings of their own for the quadratic terms of a network, for any torch optimiser.

A product of two learnt maps amplifies what goes wrong in either, so quadratic terms want smaller
steps than the first-order terms beside them, and a pull towards the first-order neuron that each
contains. That is ReLinear (Fan et al., "On expressivity and trainability of quadratic networks",
arXiv 2110.06081, section IV): a learning rate of its own, and shrinkage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR
from torch.utils.hooks import RemovableHandle

from qcompile.errors import ConfigurationError
from qcompile.nn.quadratic import QuadraticBlock, QuadraticLayer
from qcompile.nn.quadratic.formulas import Formula

__all__ = ["QuadraticWarmup", "quadratic_groups", "quadratic_parameters", "shrink"]


class QuadraticParameter(NamedTuple):
    """A parameter of a quadratic term.

    Args:
        name: its qualified name.
        parameter: itself.
        rest: its value in the first-order neuron that the layer contains, 0 or 1; ``None`` where
            there is no such neuron, or it holds whatever the value.
    """

    name: str
    parameter: nn.Parameter
    rest: float | None


def quadratic_parameters(model: nn.Module) -> Iterator[QuadraticParameter]:
    """Yield the parameters of a model's quadratic terms.

    Of a form that contains a first-order neuron these are all branches but that which computes it
    (``Quadra``: A and B, not C); of the others, such as ``T2`` and ``T3``, all branches. What a
    first-order layer owns, too, does not count. Of a block whose branches are normalised, the
    batch norms of these branches count, and lead to the first-order neuron instead of the weights.
    """
    branches = list(_branches(model))
    owners = {id(branch.owner) for branch in branches}
    seen = {
        id(parameter)
        for module in model.modules()
        if id(module) not in owners
        for parameter in module.parameters(recurse=False)
    }
    for owner, name, parameter, letter, formula, leads in branches:
        if letter == formula.keeps or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        rest = None
        if leads and letter in formula.zeroed:
            is_bias = parameter is getattr(owner, f"bias_{letter}", getattr(owner, "bias", None))
            rest = float(is_bias and letter in formula.ones)
        yield QuadraticParameter(name, parameter, rest)


class _Branch(NamedTuple):
    """A parameter of a branch, and whether it leads to the first-order neuron."""

    owner: nn.Module
    name: str
    parameter: nn.Parameter
    letter: str
    formula: Formula
    leads: bool


def _branches(model: nn.Module) -> Iterator[_Branch]:
    blocks = {id(m.layer): m for m in model.modules() if isinstance(m, QuadraticBlock)}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, QuadraticLayer):
            block = blocks.get(id(module))
            norms = block.branch_norms if block is not None else {}
            for kind, parameter in module.named_parameters(recurse=False):
                letter = kind.rpartition("_")[2]
                leads = letter not in norms
                yield _Branch(module, dot + kind, parameter, letter, module.formula, leads)
        elif isinstance(module, QuadraticBlock):
            for letter, norm in module.branch_norms.items():
                for kind, parameter in norm.named_parameters(recurse=False):
                    name = f"{dot}norm_{letter}.{kind}"
                    yield _Branch(norm, name, parameter, letter, module.layer.formula, True)


def quadratic_groups(
    model: nn.Module,
    lr: float,
    *,
    scale: float = 0.1,
    shrinkage: float = 0.0,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser: first-order terms, and quadratic ones apart.

    Args:
        model: with quadratic layers or without.
        lr: learning rate of the first-order parameters.
        scale: that of the quadratic ones is ``scale · lr``.
        shrinkage: what :func:`shrink` pulls the quadratic parameters by, in units of 1/lr: a step
            takes ``lr · scale · shrinkage`` of the distance to the first-order neuron. ``A`` of
            ``Quadra`` goes to zero, ``B`` of ``T4`` to zero with a bias of one.
        settings: of every group, such as ``weight_decay``. Shrinking parameters get no
            ``weight_decay``, which would pull a bias of one to zero.

    Returns:
        Groups without empty ones. Each has ``quadratic``, ``shrinkage`` and ``rest`` besides.

    Raises:
        ConfigurationError: a number is out of range, or a name is taken.
    """
    for name, value in (("lr", lr), ("scale", scale), ("shrinkage", shrinkage)):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigurationError(
                f"quadratic_groups: {name} must be a finite number of at least 0, got {value!r}."
            )
    if lr * scale * shrinkage > 1:
        raise ConfigurationError(
            f"quadratic_groups: lr · scale · shrinkage is {lr * scale * shrinkage:g}; beyond 1 a "
            "step overshoots. Lower shrinkage."
        )
    taken = {"params", "lr", "quadratic", "shrinkage", "rest"} & settings.keys()
    if taken:
        raise ConfigurationError(f"quadratic_groups: {', '.join(sorted(taken))} is set by itself.")
    quadratic = list(quadratic_parameters(model))
    found = {id(each.parameter) for each in quadratic}
    first_order = [parameter for parameter in model.parameters() if id(parameter) not in found]
    groups = [_group(first_order, lr, settings, quadratic=False)]
    for rest in (None, 0.0, 1.0):
        parameters = [each.parameter for each in quadratic if each.rest == rest]
        group = _group(parameters, scale * lr, settings, quadratic=True)
        if rest is not None and shrinkage > 0:
            group |= {"shrinkage": shrinkage, "rest": rest}
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
        groups.append(group)
    return [group for group in groups if group["params"]]


def _group(
    parameters: list[nn.Parameter], lr: float, settings: dict[str, Any], quadratic: bool
) -> dict[str, Any]:
    return {
        **settings,
        "params": parameters,
        "lr": lr,
        "quadratic": quadratic,
        "shrinkage": 0.0,
        "rest": 0.0,
    }


def shrink(optimizer: Optimizer) -> RemovableHandle:
    """Pull quadratic parameters towards the first-order neuron after each step of ``optimizer``.

    The groups of :func:`quadratic_groups` say how far; like decoupled weight decay it follows the
    learning rate of the moment and does not enter the gradients.

    Args:
        optimizer: any of torch's, or of :mod:`qcompile.optim`.

    Returns:
        A handle whose ``remove()`` ends it.

    Raises:
        ConfigurationError: no group of the optimiser shrinks.
    """
    if not any(group.get("shrinkage") for group in optimizer.param_groups):
        raise ConfigurationError(
            "shrink: no group of this optimiser has shrinkage; make its groups by "
            "quadratic_groups(model, lr, shrinkage=…)."
        )
    return optimizer.register_step_post_hook(_pull)


@torch.no_grad()
def _pull(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        share = float(group["lr"]) * group.get("shrinkage", 0.0)
        if share > 0:
            for parameter in group["params"]:
                parameter.add_(group["rest"] - parameter, alpha=min(share, 1.0))


class QuadraticWarmup(LinearLR):
    """From first-order to quadratic: raises the rates of the quadratic groups over some steps.

    The rates of other groups are left alone, so it goes with a scheduler for all, as in
    ``ChainedScheduler([QuadraticWarmup(optimizer, 500), CosineAnnealingLR(optimizer, 5000)])``.

    Args:
        optimizer: with groups of :func:`quadratic_groups`.
        steps: calls of ``step()`` until the full rate.
        start: share of the rate at the first step, above 0.

    Raises:
        ConfigurationError: a number is out of range, or no group is quadratic.
    """

    def __init__(self, optimizer: Optimizer, steps: int, start: float = 1e-3) -> None:
        if steps < 1 or not 0 < start <= 1:
            raise ConfigurationError(
                f"QuadraticWarmup: steps must be at least 1 and start in (0, 1], got {steps!r} and "
                f"{start!r}."
            )
        if not any(group.get("quadratic") for group in optimizer.param_groups):
            raise ConfigurationError(
                "QuadraticWarmup: no group of this optimiser is quadratic; make its groups by "
                "quadratic_groups(model, lr)."
            )
        super().__init__(optimizer, start_factor=start, total_iters=steps)

    def get_lr(self) -> list[Any]:
        """Return the rates of this step, one a group."""
        return [
            rate if group.get("quadratic") else group["lr"]
            for rate, group in zip(super().get_lr(), self.optimizer.param_groups, strict=True)
        ]
