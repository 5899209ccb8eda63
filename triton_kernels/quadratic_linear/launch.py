"""Launches of the kernels of quadratic linear layers; importing this module needs triton.

Nothing here looks at values or at the clock, so that a launch can be traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from qcompile.triton_kernels.quadratic_linear.backward import towards_kernel
from qcompile.triton_kernels.quadratic_linear.elementwise import (
    elementwise_backward_kernel,
    elementwise_kernel,
)
from qcompile.triton_kernels.quadratic_linear.forward import forward_kernel
from qcompile.triton_kernels.quadratic_linear.problem import Kept, Problem
from qcompile.triton_kernels.quadratic_linear.tiles import GROUP, Tile, products
from qcompile.triton_kernels.registration import launch
from qcompile.triton_kernels.tuning import precision, shared_memory

ELEMENTWISE_ROWS, ELEMENTWISE_COLUMNS, ELEMENTWISE_WARPS = 32, 64, 4

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels."""


@dataclass(frozen=True)
class Towards:
    """Gradients of what the branches computed.

    Args:
        values: by letter, [M, N] each.
        sums: by letter, their sums over the rows, [N] float32; empty unless asked for.
        buffer: those of ``Problem.stored`` side by side.
    """

    values: dict[str, Tensor]
    sums: dict[str, Tensor]
    buffer: Tensor


def tiles_in(count: int, size: int) -> int:
    """Return how many tiles cover a dimension."""
    return (count + size - 1) // size


def computed(problem: Problem) -> dict[str, Any]:
    """Return what is computed, as every kernel is told."""
    return {
        "product": problem.product,
        "has_added": bool(problem.spec.added),
        "gate": problem.gate,
        "activation": problem.activation,
    }


def weights_of(problem: Problem) -> dict[str, Any]:
    """Return pointers and strides of the weights by role; x stands in for those there are not."""
    arguments: dict[str, Any] = {}
    for role, letter in problem.roles.items():
        weight = problem.weights[letter] if letter else problem.x
        arguments[f"{role}_ptr"] = weight
        arguments[f"{role}_row"], arguments[f"{role}_column"] = (
            weight.stride() if letter else (0, 0)
        )
    return arguments


def biases_of(problem: Problem) -> dict[str, Any]:
    """Return pointers and strides of the biases by role, and which there are."""
    arguments: dict[str, Any] = {}
    for role, letter in problem.roles.items():
        bias = problem.biases[letter] if letter else None
        arguments[f"has_{role}_bias"] = bias is not None
        arguments[f"{role}_bias_ptr"] = problem.x if bias is None else bias
        arguments[f"{role}_bias_step"] = 0 if bias is None else bias.stride(0)
    return arguments


def _products(problem: Problem, tile: Tile) -> dict[str, Any]:
    """Return what the kernels that multiply x by the weights share."""
    x = problem.x
    rows, columns = problem.size
    depth = x.shape[1]
    stages = tile.stages(1, products(problem.form), x.element_size(), shared_memory(x.device))
    return {
        "x_ptr": x,
        "rows": rows,
        "columns": columns,
        "depth": depth,
        "x_row": x.stride(0),
        "x_column": x.stride(1),
        **weights_of(problem),
        **biases_of(problem),
        **computed(problem),
        "squares": problem.spec.squares,
        "even": depth % tile.step == 0,
        "precision": precision(x.dtype),
        "upcast": INTERPRETED,
        "block_m": tile.rows,
        "block_n": tile.columns,
        "block_k": tile.step,
        "group": GROUP,
        "num_warps": tile.warps,
        "num_stages": stages,
    }


def launch_forward(problem: Problem, tile: Tile, keep: bool) -> tuple[Tensor, Kept]:
    """Return the layer's output [M, N], computed by one kernel, and what it keeps if it shall."""
    rows, columns = problem.size
    y = problem.x.new_empty(rows, columns)
    factors = len(set(problem.spec.factors)) if keep else 0
    keeps_added = keep and bool(problem.spec.added) and problem.activation != "none"
    kept = Kept(
        y.new_empty(rows, factors * columns) if factors else None,
        y.new_empty(rows, columns) if keeps_added else None,
    )
    launch(
        forward_kernel,
        (tiles_in(rows, tile.rows) * tiles_in(columns, tile.columns),),
        y,
        y_ptr=y,
        y_row=columns,
        y_column=1,
        keeps=factors > 0 or keeps_added,
        factors_ptr=y if kept.factors is None else kept.factors,
        factors_row=factors * columns,
        kept_added_ptr=y if kept.added is None else kept.added,
        **_products(problem, tile),
    )
    return y, kept


def _split_towards(
    problem: Problem, grad: Tensor, row_tiles: int, has_sums: bool
) -> tuple[Towards, dict[str, Any], Any]:
    """Make room for the gradients of the branches' values.

    Returns:
        Where they go, the arguments that say so to a kernel, and how to sum up afterwards.
    """
    rows, columns = problem.size
    stored = problem.stored
    buffer = grad.new_empty(rows, len(stored) * columns)
    places = dict(zip(stored, buffer.split(max(1, columns), 1), strict=False))
    partial = torch.empty(
        (row_tiles, 3, columns) if has_sums else (0,), dtype=torch.float32, device=grad.device
    )
    arguments = {
        "grad_ptr": grad,
        "grad_row": grad.stride(0),
        "grad_column": grad.stride(1),
        "towards_ptr": buffer,
        "towards_row": buffer.stride(0),
        "sums_ptr": partial,
        "has_sums": has_sums,
    }
    values = {x: places.get(x, grad) for x in problem.roles.values() if x}
    return Towards(values, {}, buffer), arguments, partial


def _summed(problem: Problem, towards: Towards, partial: Tensor, has_sums: bool) -> Towards:
    if not has_sums:
        return towards
    sums = partial.sum(0).unbind(0)
    named = {x: s for x, s in zip(problem.roles.values(), sums, strict=True) if x}
    return Towards(towards.values, named, towards.buffer)


def launch_towards(problem: Problem, grad: Tensor, tile: Tile, has_sums: bool) -> Towards:
    """Return the gradients of the branches' values, which are recomputed.

    Args:
        problem: the layer.
        grad: of its output, [M, N], any strides.
        tile: of the products.
        has_sums: whether the biases' gradients are wanted.
    """
    rows, columns = problem.size
    row_tiles = tiles_in(rows, tile.rows)
    towards, arguments, partial = _split_towards(problem, grad, row_tiles, has_sums)
    launch(
        towards_kernel,
        (row_tiles * tiles_in(columns, tile.columns),),
        grad,
        **arguments,
        **_products(problem, tile),
    )
    return _summed(problem, towards, partial, has_sums)


def values_of(problem: Problem, kept: Kept) -> dict[str, Any]:
    """Return pointers and strides of kept products; others stand in for those there are not."""
    columns = problem.size[1]
    some = kept.factors if kept.factors is not None else kept.added
    some = problem.x if some is None else some
    pair = problem.product == "pair" and kept.factors is not None
    return {
        "first": some,
        "second": some.narrow(1, columns, columns) if pair else some,
        "added": some if kept.added is None else kept.added,
        "factors_row": some.stride(0),
        "added_row": 0 if kept.added is None else kept.added.stride(0),
    }


def _elementwise(problem: Problem, kept: Kept) -> dict[str, Any]:
    rows, columns = problem.size
    values = values_of(problem, kept)
    pointers = {f"{role}_ptr": values.pop(role) for role in problem.roles}
    return {
        **pointers,
        **values,
        "rows": rows,
        "columns": columns,
        **biases_of(problem),
        **computed(problem),
        "block_m": ELEMENTWISE_ROWS,
        "block_n": ELEMENTWISE_COLUMNS,
        "num_warps": ELEMENTWISE_WARPS,
    }


def launch_elementwise(problem: Problem, kept: Kept, y: Tensor) -> None:
    """Write the layer's output to y [M, N], which may be ``kept.added``."""
    rows, columns = problem.size
    launch(
        elementwise_kernel,
        (tiles_in(rows, ELEMENTWISE_ROWS) * tiles_in(columns, ELEMENTWISE_COLUMNS),),
        y,
        y_ptr=y,
        y_row=y.stride(0),
        **_elementwise(problem, kept),
    )


def launch_elementwise_backward(
    problem: Problem, grad: Tensor, kept: Kept, has_sums: bool
) -> Towards:
    """Return the gradients of the branches' values, from kept products.

    Other arguments are those of :func:`launch_towards`; ``kept.added`` may be missing where there
    is no activation.
    """
    rows, columns = problem.size
    row_tiles = tiles_in(rows, ELEMENTWISE_ROWS)
    towards, arguments, partial = _split_towards(problem, grad, row_tiles, has_sums)
    launch(
        elementwise_backward_kernel,
        (row_tiles * tiles_in(columns, ELEMENTWISE_COLUMNS),),
        grad,
        **arguments,
        **_elementwise(problem, kept),
    )
    return _summed(problem, towards, partial, has_sums)
