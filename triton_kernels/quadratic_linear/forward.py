"""The fused multi-GEMM of quadratic linear layers; importing this module needs triton."""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.quadratic_linear.activations import activate
from qcompile.triton_kernels.quadratic_linear.products import (
    add_bias,
    branch_products,
    combine,
    grouped_tile,
)


@triton.jit
def forward_kernel(
    x_ptr,
    first_ptr,
    second_ptr,
    added_ptr,
    first_bias_ptr,
    second_bias_ptr,
    added_bias_ptr,
    y_ptr,
    rows,
    columns,
    depth,
    x_row,
    x_column,
    first_row,
    first_column,
    second_row,
    second_column,
    added_row,
    added_column,
    first_bias_step,
    second_bias_step,
    added_bias_step,
    y_row,
    y_column,
    has_first: tl.constexpr,
    has_second: tl.constexpr,
    has_added: tl.constexpr,
    has_first_bias: tl.constexpr,
    has_second_bias: tl.constexpr,
    has_added_bias: tl.constexpr,
    squares: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    even: tl.constexpr,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
):
    """Store activation(gate(x A + a) ∘ (x B + b) + (x C + c)), one tile of y a program."""
    tile_m, tile_n = grouped_tile(rows, columns, block_m, block_n, group)
    row = tile_m.to(tl.int64) * block_m + tl.arange(0, block_m)
    column = tile_n.to(tl.int64) * block_n + tl.arange(0, block_n)
    row_mask, column_mask = row < rows, column < columns
    first, second, added = branch_products(
        x_ptr,
        first_ptr,
        second_ptr,
        added_ptr,
        row,
        column,
        row_mask,
        column_mask,
        depth,
        x_row,
        x_column,
        first_row,
        first_column,
        second_row,
        second_column,
        added_row,
        added_column,
        has_first,
        has_second,
        has_added,
        squares,
        even,
        precision,
        upcast,
        block_m,
        block_n,
        block_k,
    )
    first = add_bias(first, first_bias_ptr, first_bias_step, column, column_mask, has_first_bias)
    second = add_bias(
        second, second_bias_ptr, second_bias_step, column, column_mask, has_second_bias
    )
    added = add_bias(added, added_bias_ptr, added_bias_step, column, column_mask, has_added_bias)
    value = combine(first, second, added, has_first, has_second, has_added, gate)
    value = activate(value, activation)
    y_ptrs = y_ptr + row[:, None] * y_row + column[None, :] * y_column
    tl.store(
        y_ptrs, value.to(y_ptr.dtype.element_ty), mask=row_mask[:, None] & column_mask[None, :]
    )
