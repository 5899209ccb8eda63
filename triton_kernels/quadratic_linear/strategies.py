"""The ways to compute a quadratic linear layer and its gradients, and their names.

==========================  =======================================================================
name                        what it does
==========================  =======================================================================
``plain``                   plain torch, a product and an element-wise operation at a time
``concat``                  library products of concatenated weights, one element-wise kernel; keeps
                            the products for the backward pass
``fused/<tile>/own``        one kernel; the backward pass recomputes the products in one kernel, and
                            has kernels for the gradients of x and of the weights
``fused/<tile>/library``    likewise, with library products for these gradients
==========================  =======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompile.errors import ConfigurationError
from qcompile.triton_kernels.quadratic_linear.problem import Problem
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

Kept = tuple[Tensor, Tensor]
"""Products of the factors [M, N] or [M, 2N], and of the added branch; [0] where not kept."""


@dataclass(frozen=True)
class Strategy:
    """A parsed name; the module's docstring lists them.

    Args:
        kind: ``plain``, ``concat`` or ``fused``.
        tile: name of the tile of ``fused``.
        engine: ``own`` or ``library``, for ``fused``.
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
        if parts in (["plain"], ["concat"]):
            return cls(parts[0])
        if len(parts) == 3 and parts[0] == "fused" and parts[2] in ("own", "library"):
            return cls(*parts)
        raise ConfigurationError(
            f"quadratic_linear: {name!r} is no strategy. Known: plain, concat, fused/<tile>/own, "
            f"fused/<tile>/library."
        )


def tiles_of(problem: Problem) -> tuple[Tile, ...]:
    """Return the tiles with which a call can be fused on its device."""
    dtype, device = problem.dtype, problem.x.device
    return product_tiles(problem.form, dtype, shared_memory(device), precision(dtype))


def forward(problem: Problem, strategy: Strategy, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer's output [M, N] and, if ``keep``, what the strategy's backward reads."""
    nothing = problem.x.new_empty(0)
    if strategy.kind == "plain" or problem.is_empty:
        values = branch_values(problem.x, problem.weights, problem.biases, problem.form)
        return combine(values, *problem.options()), nothing, problem.x.new_empty(0)
    if strategy.kind == "concat":
        return _concatenated(problem, keep)
    from qcompile.triton_kernels.quadratic_linear.launch import launch_forward

    return launch_forward(problem, _tile(problem, strategy)), nothing, problem.x.new_empty(0)


def _tile(problem: Problem, strategy: Strategy) -> Tile:
    x = problem.x
    return named_tile(
        strategy.tile, problem.form, x.dtype, shared_memory(x.device), precision(x.dtype)
    )


def _concatenated(problem: Problem, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    from qcompile.triton_kernels.quadratic_linear.launch import launch_elementwise

    factors, added = _products(problem, keep)
    keeps_added = keep and problem.activation != "none"
    reused = added is not None and added.is_contiguous() and not keeps_added
    y = added if reused else problem.x.new_empty(*problem.size)
    assert y is not None
    launch_elementwise(problem, factors, added, y)
    kept = (factors if keep else None, added if keeps_added else None)
    first, second = (problem.x.new_empty(0) if t is None else t for t in kept)
    return y, first, second


def _products(problem: Problem, apart: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the products of the factors, side by side, and of the added branch.

    Args:
        problem: the layer.
        apart: whether both need memory of their own.
    """
    x, weights, spec = problem.x, problem.weights, problem.spec
    letters = [letter for letter in problem.roles.values() if letter and letter != spec.added]
    if not spec.added:
        return _product(x, [weights[letter] for letter in letters]), None
    if letters and not spec.squares and not apart:
        every = _product(x, [weights[letter] for letter in (*letters, spec.added)])
        columns = problem.size[1]
        width = len(letters) * columns
        return every.narrow(1, 0, width), every.narrow(1, width, columns)
    added = _product(x * x if spec.squares else x, [weights[spec.added]])
    factors = _product(x, [weights[letter] for letter in letters]) if letters else None
    return factors, added


def _product(x: Tensor, weights: list[Tensor]) -> Tensor:
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
    from qcompile.triton_kernels.quadratic_linear import launch

    has_sums = any(name.startswith("bias") for name in needs)
    if not problem.stored:
        sums = {"a": grad.sum(0)} if has_sums else {}
        towards = launch.Towards({"a": grad}, sums, grad)
    elif strategy.kind == "concat":
        factors, added = _kept_products(problem, kept)
        towards = launch.launch_elementwise_backward(problem, grad, factors, added, has_sums)
    else:
        tile = towards_tile(_tile(problem, strategy), grad.dtype, problem.activation)
        towards = launch.launch_towards(problem, grad, tile, has_sums)
    letters = "".join(x for x in problem.spec.letters if f"weight_{x}" in needs)
    gradients: dict[str, Tensor] = {}
    if strategy.engine == "own":
        if "x" in needs:
            gradients["x"] = launch.launch_towards_input(problem, towards)
        if letters:
            found = launch.launch_towards_weights(problem, towards, letters)
            gradients |= {f"weight_{x}": value for x, value in found.items()}
    else:
        if "x" in needs:
            gradients["x"] = _towards_input(problem, towards)
        for letter in letters:
            gradients[f"weight_{letter}"] = _towards_weight(problem, towards.values, letter)
    for letter in problem.spec.letters:
        if f"bias_{letter}" in needs:
            gradients[f"bias_{letter}"] = towards.sums[letter].to(grad.dtype, copy=True)
    return gradients


def _kept_products(problem: Problem, kept: Kept) -> tuple[Tensor | None, Tensor | None]:
    factors, added = (tensor if tensor.dim() == 2 else None for tensor in kept)
    lacks_factors = problem.spec.factors and factors is None
    lacks_added = problem.spec.added and problem.activation != "none" and added is None
    return _products(problem, False) if lacks_factors or lacks_added else (factors, added)


def _towards_input(problem: Problem, towards: Any) -> Tensor:
    """Return the gradient of x [M, K]: one product over the branches that are side by side."""
    weights, spec = problem.weights, problem.spec
    beside = [x for x in problem.stored if not (spec.squares and x == spec.added)]
    total = None
    if beside:
        width = len(beside) * problem.size[1]
        stacked = torch.cat([weights[x] for x in beside]) if len(beside) > 1 else weights[beside[0]]
        total = towards.buffer.narrow(1, 0, width) @ stacked
    if not spec.added or spec.added in beside:
        assert total is not None
        return total
    value, weight = towards.values[spec.added], weights[spec.added]
    if not spec.squares:
        return value @ weight if total is None else torch.addmm(total, value, weight)
    sent = value @ weight
    if total is None:
        return 2 * problem.x * sent
    return torch.addcmul(total, problem.x, sent, value=2)


def _towards_weight(problem: Problem, values: dict[str, Tensor], letter: str) -> Tensor:
    squared = problem.spec.squares and letter == problem.spec.added
    source = problem.x * problem.x if squared else problem.x
    return values[letter].t() @ source
