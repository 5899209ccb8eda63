"""The element-wise halves beside library products; importing this module needs triton.

Here the branches' values come from memory, without their biases, where the fused kernels have them
in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.quadratic_linear.activations import activate
from qcompile.triton_kernels.quadratic_linear.products import (
    add_bias,
    combine,
    combine_backward,
    store_towards,
)


@triton.jit
def load_values(
    pointer,
    bias_ptr,
    row,
    column,
    mask,
    column_mask,
    value_row,
    bias_step,
    has_value: tl.constexpr,
    has_bias: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """Return float32 values of one branch, plus its bias; zeros if there is no such branch."""
    if has_value:
        offsets = row[:, None] * value_row + column[None, :]
        value = tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)
        value = add_bias(value, bias_ptr, bias_step, column, column_mask, has_bias)
    else:
        value = tl.zeros((block_m, block_n), dtype=tl.float32)
    return value


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
    has_first: tl.constexpr,
    has_second: tl.constexpr,
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
    row = (tl.program_id(0) // tiles_n).to(tl.int64) * block_m + tl.arange(0, block_m)
    column = (tl.program_id(0) % tiles_n).to(tl.int64) * block_n + tl.arange(0, block_n)
    column_mask = column < columns
    mask = (row < rows)[:, None] & column_mask[None, :]
    first = load_values(
        first_ptr,
        first_bias_ptr,
        row,
        column,
        mask,
        column_mask,
        factors_row,
        first_bias_step,
        has_first,
        has_first_bias,
        block_m,
        block_n,
    )
    second = load_values(
        second_ptr,
        second_bias_ptr,
        row,
        column,
        mask,
        column_mask,
        factors_row,
        second_bias_step,
        has_second,
        has_second_bias,
        block_m,
        block_n,
    )
    added = load_values(
        added_ptr,
        added_bias_ptr,
        row,
        column,
        mask,
        column_mask,
        added_row,
        added_bias_step,
        has_added,
        has_added_bias,
        block_m,
        block_n,
    )
    value = combine(first, second, added, has_first, has_second, has_added, gate)
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
    has_first: tl.constexpr,
    has_second: tl.constexpr,
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
    row = tile_m.to(tl.int64) * block_m + tl.arange(0, block_m)
    column = (tl.program_id(0) % tiles_n).to(tl.int64) * block_n + tl.arange(0, block_n)
    column_mask = column < columns
    mask = (row < rows)[:, None] & column_mask[None, :]
    first = load_values(
        first_ptr,
        first_bias_ptr,
        row,
        column,
        mask,
        column_mask,
        factors_row,
        first_bias_step,
        has_first,
        has_first_bias,
        block_m,
        block_n,
    )
    second = load_values(
        second_ptr,
        second_bias_ptr,
        row,
        column,
        mask,
        column_mask,
        factors_row,
        second_bias_step,
        has_second,
        has_second_bias,
        block_m,
        block_n,
    )
    added = load_values(
        added_ptr,
        added_bias_ptr,
        row,
        column,
        mask,
        column_mask,
        added_row,
        added_bias_step,
        reads_added,
        has_added_bias,
        block_m,
        block_n,
    )
    grad_ptrs = grad_ptr + row[:, None] * grad_row + column[None, :] * grad_column
    grad = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
    towards_first, towards_second, towards_added = combine_backward(
        grad, first, second, added, has_first, has_second, has_added, gate, activation
    )
    store_towards(
        towards_first,
        towards_second,
        towards_added,
        towards_ptr,
        sums_ptr,
        row,
        column,
        rows,
        columns,
        tile_m,
        towards_row,
        has_first,
        has_second,
        has_added,
        activation != "none",
        has_sums,
    )
