"""The ways to compute a quadratic linear layer and its gradients, and their names.

==========================  =======================================================================
name                        what it does
==========================  =======================================================================
``plain``                   plain torch, a product and an element-wise operation at a time
``apart``                   a library product a branch, one element-wise kernel; keeps the products
                            for the backward pass
``concat``                  likewise, with one library product of weights that are copied beside
                            each other at every call
``fused/<tile>/library``    one kernel; the backward pass recomputes the products in one kernel, and
                            leaves the gradients of x and of the weights to library products
``fused/<tile>/kept``       one kernel, which stores the products, too; the gradients of x and of
                            the weights are a kernel each, which read them
``fused/<tile>/narrow``     one kernel; the gradients of x and of the weights are a kernel each,
                            which recompute the products from whole rows of x, if they are short
==========================  =======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompile.errors import ConfigurationError
from qcompile.triton_kernels.quadratic_linear.problem import Kept, Problem
from qcompile.triton_kernels.quadratic_linear.reference import (
    branch_values,
    combine,
    combine_backward,
    products_backward,
)
from qcompile.triton_kernels.quadratic_linear.tiles import (
    Tile,
    named_tile,
    product_tiles,
    towards_tile,
)
from qcompile.triton_kernels.tuning import precision, shared_memory

ENGINES = ("library", "kept", "narrow")


@dataclass(frozen=True)
class Strategy:
    """A parsed name; the module's docstring lists them.

    Args:
        kind: ``plain``, ``apart``, ``concat`` or ``fused``.
        tile: name of the tile of ``fused``.
        engine: of :data:`ENGINES`, for ``fused``.
    """

    kind: str
    tile: str = ""
    engine: str = ""

    @classmethod
    def parse(cls, name: str) -> Strategy:
        """Read a name.

        Raises:
            ConfigurationError: it names no strategy.
        """
        parts = name.split("/")
        if parts in (["plain"], ["apart"], ["concat"]):
            return cls(parts[0])
        if len(parts) == 3 and parts[0] == "fused" and parts[2] in ENGINES:
            return cls(*parts)
        engines = ", ".join(f"fused/<tile>/{engine}" for engine in ENGINES)
        raise ConfigurationError(
            f"quadratic_linear: {name!r} is no strategy. Known: plain, apart, concat, {engines}."
        )


def tiles_of(problem: Problem) -> tuple[Tile, ...]:
    """Return the tiles with which a call can be fused on its device."""
    dtype, device = problem.dtype, problem.x.device
    return product_tiles(problem.form, dtype, shared_memory(device), precision(dtype))


def forward(problem: Problem, strategy: Strategy, keep: bool) -> tuple[Tensor, Kept]:
    """Return the layer's output [M, N] and, if ``keep``, what the strategy's backward reads."""
    if strategy.kind == "plain" or problem.is_empty:
        values = branch_values(problem.x, problem.weights, problem.biases, problem.form)
        return combine(values, *problem.options()), Kept(None, None)
    if strategy.kind != "fused":
        return _by_library(problem, strategy, keep)
    from qcompile.triton_kernels.quadratic_linear.launch import launch_forward

    return launch_forward(problem, _tile(problem, strategy), keep and strategy.engine == "kept")


def _tile(problem: Problem, strategy: Strategy) -> Tile:
    x = problem.x
    return named_tile(
        strategy.tile, problem.form, x.dtype, shared_memory(x.device), precision(x.dtype)
    )


def _by_library(problem: Problem, strategy: Strategy, keep: bool) -> tuple[Tensor, Kept]:
    from qcompile.triton_kernels.quadratic_linear.launch import launch_elementwise

    products = _products(problem, strategy, keep)
    keeps_added = keep and problem.activation != "none"
    added = products.added
    reused = added is not None and added.is_contiguous() and not keeps_added
    y = added if reused and added is not None else problem.x.new_empty(*problem.size)
    launch_elementwise(problem, products, y)
    factors = products.factors if keep else None
    return y, Kept(factors, added if keeps_added else None)


def _products(problem: Problem, strategy: Strategy, separate: bool) -> Kept:
    """Return the products of the factors, side by side, and of the added branch.

    Args:
        problem: the layer.
        strategy: whether they are computed apart.
        separate: whether both need memory of their own.
    """
    x, weights, spec = problem.x, problem.weights, problem.spec
    letters = "".join(dict.fromkeys(spec.factors))
    if strategy.kind == "apart":
        rows, columns = problem.size
        factors = x.new_empty(rows, len(letters) * columns) if letters else None
        for place, letter in enumerate(letters):
            assert factors is not None
            torch.mm(x, weights[letter].t(), out=factors.narrow(1, place * columns, columns))
    elif letters and spec.added and not spec.squares and not separate:
        every = _concatenated(x, [weights[letter] for letter in (*letters, spec.added)])
        columns = problem.size[1]
        width = len(letters) * columns
        return Kept(every.narrow(1, 0, width), every.narrow(1, width, columns))
    else:
        factors = _concatenated(x, [weights[letter] for letter in letters]) if letters else None
    if not spec.added:
        return Kept(factors, None)
    return Kept(factors, (x * x if spec.squares else x) @ weights[spec.added].t())


def _concatenated(x: Tensor, weights: list[Tensor]) -> Tensor:
    return x @ (weights[0] if len(weights) == 1 else torch.cat(weights)).t()


def backward(
    problem: Problem, grad: Tensor, kept: Kept, strategy: Strategy, needs: frozenset[str]
) -> dict[str, Tensor]:
    """Return the gradients named in ``needs``: ``x``, ``weight_a``, ``bias_a`` and so on.

    Args:
        problem: the layer.
        grad: of its output, [M, N], any strides.
        kept: as :func:`forward` returned it; what is missing is recomputed.
        strategy: that of the forward pass.
        needs: names.
    """
    if strategy.kind == "plain" or problem.is_empty:
        values = branch_values(problem.x, problem.weights, problem.biases, problem.form)
        found = combine_backward(grad, values, *problem.options())
        return products_backward(found, problem.x, problem.weights, problem.form, needs)
    if strategy.engine in ("kept", "narrow"):
        gradients, sums = _by_kernels(problem, grad, kept, strategy, needs)
    else:
        gradients, sums = _by_products(problem, grad, kept, strategy, needs)
    for letter in problem.spec.letters:
        if f"bias_{letter}" in needs:
            gradients[f"bias_{letter}"] = sums[letter].to(grad.dtype, copy=True)
    return gradients


Found = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Gradients by name, and those of the biases by letter, in float32."""


def _has_sums(needs: frozenset[str]) -> bool:
    return any(name.startswith("bias") for name in needs)


def _letters(problem: Problem, needs: frozenset[str]) -> str:
    return "".join(x for x in problem.spec.letters if f"weight_{x}" in needs)


def _by_kernels(
    problem: Problem, grad: Tensor, kept: Kept, strategy: Strategy, needs: frozenset[str]
) -> Found:
    from qcompile.triton_kernels.quadratic_linear.launch_gradients import (
        launch_input_gradient,
        launch_weight_gradients,
    )

    read: Kept | None = None
    if strategy.engine == "kept":
        read = _complete(problem, kept, strategy)
    gradients: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    if "x" in needs:
        gradients["x"] = launch_input_gradient(problem, grad, read)
    letters, has_sums = _letters(problem, needs), _has_sums(needs)
    if letters or has_sums:
        found, sums = launch_weight_gradients(problem, grad, read, letters, has_sums)
        gradients |= {f"weight_{x}": value for x, value in found.items()}
    return gradients, sums


def _by_products(
    problem: Problem, grad: Tensor, kept: Kept, strategy: Strategy, needs: frozenset[str]
) -> Found:
    from qcompile.triton_kernels.quadratic_linear import launch

    has_sums = _has_sums(needs)
    if not problem.stored:
        towards = launch.Towards({"a": grad}, {"a": grad.sum(0)} if has_sums else {}, grad)
    elif strategy.kind == "fused":
        tile = towards_tile(_tile(problem, strategy), grad.dtype, problem.activation)
        towards = launch.launch_towards(problem, grad, tile, has_sums)
    else:
        read = _complete(problem, kept, strategy)
        towards = launch.launch_elementwise_backward(problem, grad, read, has_sums)
    gradients: dict[str, Tensor] = {}
    if "x" in needs:
        gradients["x"] = _towards_input(problem, towards, strategy)
    for letter in _letters(problem, needs):
        gradients[f"weight_{letter}"] = _towards_weight(problem, towards.values, letter)
    return gradients, towards.sums


def _complete(problem: Problem, kept: Kept, strategy: Strategy) -> Kept:
    """Return the products that were kept, or compute them where they were not."""
    lacks_factors = problem.spec.factors and kept.factors is None
    lacks_added = problem.spec.added and problem.activation != "none" and kept.added is None
    return _products(problem, strategy, False) if lacks_factors or lacks_added else kept


def _towards_input(problem: Problem, towards: Any, strategy: Strategy) -> Tensor:
    """Return the gradient of x [M, K]."""
    weights, spec = problem.weights, problem.spec
    beside = [x for x in problem.stored if not (spec.squares and x == spec.added)]
    total = None
    if strategy.kind == "apart":
        for letter in beside:
            total = _plus(total, towards.values[letter], weights[letter])
    elif beside:  # one product over the branches that are side by side
        width = len(beside) * problem.size[1]
        stacked = torch.cat([weights[x] for x in beside]) if len(beside) > 1 else weights[beside[0]]
        total = towards.buffer.narrow(1, 0, width) @ stacked
    if not spec.added or spec.added in beside:
        assert total is not None
        return total
    value, weight = towards.values[spec.added], weights[spec.added]
    if not spec.squares:
        return _plus(total, value, weight)
    sent = value @ weight
    if total is None:
        return 2 * problem.x * sent
    return torch.addcmul(total, problem.x, sent, value=2)


def _plus(total: Tensor | None, value: Tensor, weight: Tensor) -> Tensor:
    return value @ weight if total is None else torch.addmm(total, value, weight)


def _towards_weight(problem: Problem, values: dict[str, Tensor], letter: str) -> Tensor:
    squared = problem.spec.squares and letter == problem.spec.added
    source = problem.x * problem.x if squared else problem.x
    return values[letter].t() @ source
