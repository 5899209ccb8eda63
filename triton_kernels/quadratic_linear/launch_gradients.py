"""Launches of the fused gradients of x and of the weights; importing this module needs triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcompile.triton_kernels.quadratic_linear.gradients import (
    input_gradient_kernel,
    weight_gradients_kernel,
)
from qcompile.triton_kernels.quadratic_linear.launch import (
    INTERPRETED,
    biases_of,
    computed,
    tiles_in,
    values_of,
    weights_of,
)
from qcompile.triton_kernels.quadratic_linear.problem import Kept, Problem
from qcompile.triton_kernels.quadratic_linear.tiles import (
    GROUP,
    GradientTile,
    input_tile,
    weights_tile,
)
from qcompile.triton_kernels.registration import launch
from qcompile.triton_kernels.tuning import precision, processors


def _common(
    problem: Problem, grad: Tensor, kept: Kept | None, tile: GradientTile
) -> dict[str, Any]:
    x = problem.x
    (rows, columns), depth = problem.size, x.shape[1]
    values = values_of(problem, Kept(None, None) if kept is None else kept)
    return {
        "grad_ptr": grad,
        "grad_row": grad.stride(0),
        "grad_column": grad.stride(1),
        "x_ptr": x,
        "x_row": x.stride(0),
        "x_column": x.stride(1),
        "rows": rows,
        "columns": columns,
        "depth": depth,
        **{f"{role}_value_ptr": values[role] for role in problem.roles},
        "factors_row": values["factors_row"],
        "added_value_row": values["added_row"],
        **weights_of(problem),
        **biases_of(problem),
        **computed(problem),
        "squares": problem.spec.squares,
        "recomputes": kept is None,
        "precision": precision(x.dtype),
        "upcast": INTERPRETED,
        "block_m": tile.rows,
        "block_n": tile.columns,
        "block_k": tile.depth,
        "group": GROUP,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def launch_input_gradient(problem: Problem, grad: Tensor, kept: Kept | None) -> Tensor:
    """Return the gradient of x, [M, K].

    Args:
        problem: the layer.
        grad: of its output, [M, N], any strides.
        kept: what the forward pass has kept; ``None`` to recompute it.
    """
    x = problem.x
    rows, depth = x.shape
    tile = input_tile(problem.form, x.dtype, problem.activation, depth)
    dx = x.new_empty(rows, depth)
    launch(
        input_gradient_kernel,
        (tiles_in(rows, tile.rows) * tiles_in(depth, tile.depth),),
        x,
        dx_ptr=dx,
        dx_row=depth,
        **_common(problem, grad, kept, tile),
    )
    return dx


def launch_weight_gradients(
    problem: Problem, grad: Tensor, kept: Kept | None, letters: str, has_sums: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradients of the weights of ``letters``, [N, K], and of all biases, [N] float32.

    Few tiles are summed in parts, so that every multiprocessor has work, and the parts are added
    up in order. Other arguments are those of :func:`launch_input_gradient`.
    """
    x = problem.x
    (rows, columns), depth = problem.size, x.shape[1]
    form, gate, activation = problem.options()
    tile = weights_tile(form, x.dtype, gate, activation, depth, kept is None)
    tiles = tiles_in(columns, tile.columns) * tiles_in(depth, tile.depth)
    steps = tiles_in(rows, tile.rows)
    parts = max(1, min(steps, processors(x.device) // tiles))
    part_rows = tiles_in(steps, parts) * tile.rows
    parts = tiles_in(rows, part_rows)
    dtype = x.dtype if parts == 1 else torch.float32
    # One allocation a branch: what is returned must not share memory.
    made = {
        letter: torch.empty((parts, columns, depth), dtype=dtype, device=x.device)
        for letter in letters
    }
    sums = torch.empty(
        (parts, 3, columns) if has_sums else (0,), dtype=torch.float32, device=x.device
    )
    some = made[letters[0]] if letters else sums
    roles = problem.roles.items()
    launch(
        weight_gradients_kernel,
        (tiles, parts),
        x,
        **{f"{role}_out_ptr": made.get(letter, some) for role, letter in roles},
        **{f"wants_{role}": letter in made for role, letter in roles},
        has_sums=has_sums,
        sums_ptr=sums,
        part_rows=part_rows,
        part_step=columns * depth,
        **_common(problem, grad, kept, tile),
    )
    weights = {
        letter: m.squeeze(0) if parts == 1 else m.sum(0).to(x.dtype) for letter, m in made.items()
    }
    named = zip(roles, sums.sum(0).unbind(0), strict=True) if has_sums else ()
    return weights, {letter: total for (_, letter), total in named if letter}
