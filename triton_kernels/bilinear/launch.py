"""Launches of the kernels of the full quadratic form; importing this module needs triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from qcompile.triton_kernels.bilinear.kernel import (
    bilinear_input_kernel,
    bilinear_kernel,
    bilinear_weight_kernel,
)
from qcompile.triton_kernels.registration import launch
from qcompile.triton_kernels.tuning import precision, processors

ROWS, OUTPUTS, STEP = 64, 16, 32
"""Rows and outputs of a program, rows of a step of the weight's gradient."""

WARPS, STAGES = 4, 3

INTERPRETED = not isinstance(bilinear_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels."""


def block(width: int) -> int:
    """Return the tile that holds a row of x."""
    return max(16, triton.next_power_of_2(width))


def _tiles(count: int, size: int) -> int:
    return (count + size - 1) // size


def _common(x: Tensor) -> dict[str, Any]:
    rows, width = x.shape
    return {
        "x_ptr": x,
        "rows": rows,
        "width": width,
        "x_row": x.stride(0),
        "x_column": x.stride(1),
        "precision": precision(x.dtype),
        "upcast": INTERPRETED,
        "block_k": block(width),
        "num_warps": WARPS,
        "num_stages": STAGES,
    }


def _matrices(weight: Tensor) -> dict[str, Any]:
    names = ("w_output", "w_row", "w_column")
    return {
        "w_ptr": weight,
        "outputs": weight.shape[0],
        **dict(zip(names, weight.stride(), strict=True)),
    }


def launch_bilinear(x: Tensor, weight: Tensor) -> Tensor:
    """Return the forms [M, N] of x [M, K] and weights [N, K, K]."""
    rows, outputs = x.shape[0], weight.shape[0]
    y = x.new_empty(rows, outputs)
    grid = (_tiles(rows, ROWS), _tiles(outputs, OUTPUTS))
    more = {"y_ptr": y, "y_row": outputs, "block_m": ROWS, "block_o": OUTPUTS}
    launch(bilinear_kernel, grid, x, **_common(x), **_matrices(weight), **more)
    return y


def launch_bilinear_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of x, [M, K]; the outputs are summed in parts, added up in order."""
    rows, outputs = x.shape[0], weight.shape[0]
    tiles = _tiles(rows, ROWS)
    parts = max(1, min(_tiles(outputs, OUTPUTS), 2 * processors(x.device) // tiles))
    part_outputs = _tiles(outputs, parts)
    parts = _tiles(outputs, part_outputs)
    dtype = x.dtype if parts == 1 else torch.float32
    dx = torch.empty((parts, *x.shape), dtype=dtype, device=x.device)
    more = {
        "grad_ptr": grad,
        "grad_row": grad.stride(0),
        "grad_column": grad.stride(1),
        "dx_ptr": dx,
        "part_outputs": part_outputs,
        "block_m": ROWS,
    }
    launch(bilinear_input_kernel, (tiles, parts), x, **_common(x), **_matrices(weight), **more)
    return dx.squeeze(0) if parts == 1 else dx.sum(0).to(x.dtype)


def launch_bilinear_weight(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of the weight, [N, K, K]; rows are summed in parts, likewise."""
    (rows, width), outputs = x.shape, grad.shape[1]
    steps = _tiles(rows, STEP)
    parts = max(1, min(steps, 2 * processors(x.device) // outputs))
    part_rows = _tiles(steps, parts) * STEP
    parts = _tiles(rows, part_rows)
    dtype = x.dtype if parts == 1 else torch.float32
    dw = torch.empty((parts, outputs, width, width), dtype=dtype, device=x.device)
    more = {
        "grad_ptr": grad,
        "grad_row": grad.stride(0),
        "grad_column": grad.stride(1),
        "dw_ptr": dw,
        "outputs": outputs,
        "part_rows": part_rows,
        "block_m": STEP,
    }
    launch(bilinear_weight_kernel, (outputs, parts), x, **_common(x), **more)
    return dw.squeeze(0) if parts == 1 else dw.sum(0).to(x.dtype)
