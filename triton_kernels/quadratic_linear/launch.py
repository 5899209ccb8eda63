"""Launches of the kernels of quadratic linear layers; importing this module needs triton.

Nothing here looks at values or at the clock, so that a launch can be traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from qcompile.triton_kernels.quadratic_linear.backward import (
    towards_input_kernel,
    towards_kernel,
    towards_weights_kernel,
)
from qcompile.triton_kernels.quadratic_linear.elementwise import (
    elementwise_backward_kernel,
    elementwise_kernel,
)
from qcompile.triton_kernels.quadratic_linear.forward import forward_kernel
from qcompile.triton_kernels.quadratic_linear.problem import Problem
from qcompile.triton_kernels.quadratic_linear.tiles import (
    GROUP,
    Tile,
    input_tile,
    products,
    weights_tile,
)
from qcompile.triton_kernels.registration import launch
from qcompile.triton_kernels.tuning import precision, processors, shared_memory

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


def _tiles(count: int, size: int) -> int:
    return (count + size - 1) // size


def _present(problem: Problem) -> dict[str, bool]:
    return {f"has_{role}": bool(letter) for role, letter in problem.roles.items()}


def _weights(problem: Problem) -> dict[str, Any]:
    """Return pointers and strides of the weights by role; x stands in for those there are not."""
    arguments: dict[str, Any] = {}
    for role, letter in problem.roles.items():
        weight = problem.weights[letter] if letter else problem.x
        arguments[f"{role}_ptr"] = weight
        arguments[f"{role}_row"], arguments[f"{role}_column"] = (
            weight.stride() if letter else (0, 0)
        )
    return arguments


def _biases(problem: Problem) -> dict[str, Any]:
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
        **_weights(problem),
        **_biases(problem),
        **_present(problem),
        "squares": problem.spec.squares,
        "gate": problem.gate,
        "activation": problem.activation,
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


def launch_forward(problem: Problem, tile: Tile) -> Tensor:
    """Return the layer's output [M, N], computed by one kernel."""
    rows, columns = problem.size
    y = problem.x.new_empty(rows, columns)
    if y.numel():
        grid = (_tiles(rows, tile.rows) * _tiles(columns, tile.columns),)
        launch(
            forward_kernel,
            grid,
            y,
            y_ptr=y,
            y_row=columns,
            y_column=1,
            **_products(problem, tile),
        )
    return y


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
    row_tiles = _tiles(rows, tile.rows)
    towards, arguments, partial = _split_towards(problem, grad, row_tiles, has_sums)
    launch(
        towards_kernel,
        (row_tiles * _tiles(columns, tile.columns),),
        grad,
        **arguments,
        **_products(problem, tile),
    )
    return _summed(problem, towards, partial, has_sums)


def _elementwise(problem: Problem, factors: Tensor | None, added: Tensor | None) -> dict[str, Any]:
    rows, columns = problem.size
    some = problem.x if factors is None else factors
    has_second = problem.roles["second"] and factors is not None
    second = some.narrow(1, columns, columns) if has_second else some
    return {
        "first_ptr": some,
        "second_ptr": second,
        "added_ptr": some if added is None else added,
        "rows": rows,
        "columns": columns,
        "factors_row": some.stride(0),
        "added_row": 0 if added is None else added.stride(0),
        **_biases(problem),
        **_present(problem),
        "gate": problem.gate,
        "activation": problem.activation,
        "block_m": ELEMENTWISE_ROWS,
        "block_n": ELEMENTWISE_COLUMNS,
        "num_warps": ELEMENTWISE_WARPS,
    }


def launch_elementwise(
    problem: Problem, factors: Tensor | None, added: Tensor | None, y: Tensor
) -> None:
    """Write the layer's output to y.

    Args:
        problem: the layer.
        factors: products of the first, or of first and second side by side, [M, N] or [M, 2N].
        added: products of the added branch, [M, N].
        y: [M, N]; it may be ``added``.
    """
    rows, columns = problem.size
    launch(
        elementwise_kernel,
        (_tiles(rows, ELEMENTWISE_ROWS) * _tiles(columns, ELEMENTWISE_COLUMNS),),
        y,
        y_ptr=y,
        y_row=y.stride(0),
        **_elementwise(problem, factors, added),
    )


def launch_elementwise_backward(
    problem: Problem, grad: Tensor, factors: Tensor | None, added: Tensor | None, has_sums: bool
) -> Towards:
    """Return the gradients of the branches' values, read from ``factors`` and ``added``.

    Arguments are those of :func:`launch_elementwise` and :func:`launch_towards`; ``added`` may be
    missing where there is no activation.
    """
    rows, columns = problem.size
    row_tiles = _tiles(rows, ELEMENTWISE_ROWS)
    towards, arguments, partial = _split_towards(problem, grad, row_tiles, has_sums)
    launch(
        elementwise_backward_kernel,
        (row_tiles * _tiles(columns, ELEMENTWISE_COLUMNS),),
        grad,
        **arguments,
        **_elementwise(problem, factors, added),
    )
    return _summed(problem, towards, partial, has_sums)


def _towards(problem: Problem, towards: Towards) -> dict[str, Any]:
    """Return pointers and strides of the gradients of the branches' values."""
    found = [towards.values.get(letter, towards.buffer) for letter in problem.roles.values()]
    first, second, added = found
    return {
        "towards_first_ptr": first,
        "towards_second_ptr": second,
        "towards_added_ptr": added,
        "towards_row": first.stride(0),
        "towards_added_row": added.stride(0),
        "towards_added_column": added.stride(1),
    }


def launch_towards_input(problem: Problem, towards: Towards) -> Tensor:
    """Return the gradient of x, [M, K]."""
    x = problem.x
    (rows, summed), depth = problem.size, x.shape[1]
    tile = input_tile(x.dtype)
    dx = x.new_empty(rows, depth)
    count = products(problem.form)
    launch(
        towards_input_kernel,
        (_tiles(rows, tile.rows) * _tiles(depth, tile.columns),),
        x,
        **_towards(problem, towards),
        **_weights(problem),
        **_present(problem),
        x_ptr=x,
        dx_ptr=dx,
        rows=rows,
        columns=depth,
        depth=summed,
        x_row=x.stride(0),
        x_column=x.stride(1),
        dx_row=depth,
        squares=problem.spec.squares,
        even=summed % tile.step == 0,
        precision=precision(x.dtype),
        upcast=INTERPRETED,
        block_m=tile.rows,
        block_n=tile.columns,
        block_k=tile.step,
        group=GROUP,
        num_warps=tile.warps,
        num_stages=tile.stages(count, count, x.element_size(), shared_memory(x.device)),
    )
    return dx


def launch_towards_weights(problem: Problem, towards: Towards, letters: str) -> dict[str, Tensor]:
    """Return the gradients of the weights of the branches ``letters``, [N, K] each, by letter.

    Few tiles are summed in parts, so that every multiprocessor has work, and the parts are added
    up in order.
    """
    x = problem.x
    (rows, columns), depth = problem.size, x.shape[1]
    tile = weights_tile(x.dtype)
    tiles = _tiles(columns, tile.rows) * _tiles(depth, tile.columns)
    steps = _tiles(rows, tile.step)
    parts = max(1, min(steps, 2 * processors(x.device) // tiles))
    part_rows = _tiles(steps, parts) * tile.step
    parts = _tiles(rows, part_rows)
    dtype = x.dtype if parts == 1 else torch.float32
    # One allocation a branch: what is returned must not share memory.
    made = {
        letter: torch.empty((parts, columns, depth), dtype=dtype, device=x.device)
        for letter in letters
    }
    some = made[letters[0]]
    launch(
        towards_weights_kernel,
        (tiles, parts),
        x,
        **_towards(problem, towards),
        **{f"{role}_ptr": made.get(letter, some) for role, letter in problem.roles.items()},
        **{f"has_{role}": letter in made for role, letter in problem.roles.items()},
        x_ptr=x,
        rows=rows,
        columns=columns,
        depth=depth,
        part_rows=part_rows,
        x_row=x.stride(0),
        x_column=x.stride(1),
        part_step=columns * depth,
        squares=problem.spec.squares,
        precision=precision(x.dtype),
        upcast=INTERPRETED,
        block_n=tile.rows,
        block_k=tile.columns,
        block_m=tile.step,
        group=GROUP,
        num_warps=tile.warps,
        num_stages=tile.stages(len(letters), 1, x.element_size(), shared_memory(x.device)),
    )
    return {
        letter: m.squeeze(0) if parts == 1 else m.sum(0).to(x.dtype) for letter, m in made.items()
    }
