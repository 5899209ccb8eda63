"""The element-wise halves beside library products; importing this module needs triton.

Here the branches' values come from memory, without their biases, where the fused kernels have them
in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.elementwise.arithmetic import activate
from qcompile.triton_kernels.quadratic_linear.products import (
    add_biases,
    combine_branches,
    load_values,
    span,
    store_towards,
    towards_values,
)


@triton.jit
def elementwise_kernel(
    first_ptr,
    second_ptr,
    added_ptr,
    first_bias_ptr,
    second_bias_ptr,
    added_bias_ptr,
    y_ptr,
    rows,
    columns,
    factors_row,
    added_row,
    first_bias_step,
    second_bias_step,
    added_bias_step,
    y_row,
    product: tl.constexpr,
    has_added: tl.constexpr,
    has_first_bias: tl.constexpr,
    has_second_bias: tl.constexpr,
    has_added_bias: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """Store activation(gate(first) ∘ second + added), [M, N]; y may be where ``added`` is."""
    tiles_n = tl.cdiv(columns, block_n)
    row = span(tl.program_id(0) // tiles_n, block_m)
    column = span(tl.program_id(0) % tiles_n, block_n)
    column_mask = column < columns
    mask = (row < rows)[:, None] & column_mask[None, :]
    pointers = (first_ptr, second_ptr, added_ptr)
    factors_at = row[:, None] * factors_row + column[None, :]
    added_at = row[:, None] * added_row + column[None, :]
    values = load_values(pointers, factors_at, added_at, mask, product, has_added)
    biases = (first_bias_ptr, second_bias_ptr, added_bias_ptr)
    bias_steps = (first_bias_step, second_bias_step, added_bias_step)
    has_bias = (has_first_bias, has_second_bias, has_added_bias)
    values = add_biases(values, biases, bias_steps, column, column_mask, has_bias, False)
    value = combine_branches(values, product, has_added, gate)
    value = activate(value, activation).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row[:, None] * y_row + column[None, :], value, mask=mask)


@triton.jit
def elementwise_backward_kernel(
    grad_ptr,
    first_ptr,
    second_ptr,
    added_ptr,
    first_bias_ptr,
    second_bias_ptr,
    added_bias_ptr,
    towards_ptr,
    sums_ptr,
    rows,
    columns,
    grad_row,
    grad_column,
    factors_row,
    added_row,
    first_bias_step,
    second_bias_step,
    added_bias_step,
    towards_row,
    product: tl.constexpr,
    has_added: tl.constexpr,
    has_first_bias: tl.constexpr,
    has_second_bias: tl.constexpr,
    has_added_bias: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    has_sums: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """Store the gradients of the branches' values, and their sums over the rows of a tile.

    The added branch's values are read only if there is an activation; without one its gradient is
    ``grad`` and is not stored.
    """
    reads_added: tl.constexpr = has_added and activation != "none"
    tiles_n = tl.cdiv(columns, block_n)
    tile_m = tl.program_id(0) // tiles_n
    row, column = span(tile_m, block_m), span(tl.program_id(0) % tiles_n, block_n)
    column_mask = column < columns
    mask = (row < rows)[:, None] & column_mask[None, :]
    pointers = (first_ptr, second_ptr, added_ptr)
    factors_at = row[:, None] * factors_row + column[None, :]
    added_at = row[:, None] * added_row + column[None, :]
    values = load_values(pointers, factors_at, added_at, mask, product, reads_added)
    biases = (first_bias_ptr, second_bias_ptr, added_bias_ptr)
    bias_steps = (first_bias_step, second_bias_step, added_bias_step)
    has_bias = (has_first_bias, has_second_bias, has_added_bias and reads_added)
    values = add_biases(values, biases, bias_steps, column, column_mask, has_bias, False)
    grad_ptrs = grad_ptr + row[:, None] * grad_row + column[None, :] * grad_column
    grad = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
    towards = towards_values(grad, values, product, has_added, gate, activation)
    store_towards(
        towards,
        towards_ptr,
        sums_ptr,
        row,
        column,
        rows,
        columns,
        tile_m,
        towards_row,
        product,
        has_added,
        activation != "none",
        has_sums,
    )
