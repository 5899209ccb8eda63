"""The fused multi-GEMM of quadratic linear layers; importing this module needs triton."""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.elementwise.arithmetic import activate
from qcompile.triton_kernels.quadratic_linear.products import (
    add_biases,
    branch_products,
    combine_branches,
    grouped_tile,
    span,
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
    factors_ptr,
    kept_added_ptr,
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
    factors_row,
    product: tl.constexpr,
    has_added: tl.constexpr,
    has_first_bias: tl.constexpr,
    has_second_bias: tl.constexpr,
    has_added_bias: tl.constexpr,
    squares: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    keeps: tl.constexpr,
    even: tl.constexpr,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
):
    """Store activation(gate(x A + a) ∘ (x B + b) + (x C + c)), one tile of y a program.

    If it ``keeps`` the products, it stores them for the backward pass, too: those of the factors
    side by side, [M, N] or [M, 2N], and with an activation those of the added branch, [M, N].
    """
    tile_m, tile_n = grouped_tile(rows, columns, block_m, block_n, group)
    row, column = span(tile_m, block_m), span(tile_n, block_n)
    row_mask, column_mask = row < rows, column < columns
    values = branch_products(
        x_ptr,
        (first_ptr, second_ptr, added_ptr),
        (x_row, x_column),
        ((first_row, first_column), (second_row, second_column), (added_row, added_column)),
        row,
        column,
        row_mask,
        column_mask,
        depth,
        product,
        has_added,
        squares,
        even,
        precision,
        upcast,
        block_m,
        block_n,
        block_k,
    )
    mask = row_mask[:, None] & column_mask[None, :]
    element = y_ptr.dtype.element_ty
    if keeps:
        # Rounded here, too: both passes then agree on the sign of what a ReLU takes.
        first, second, added = values
        factors_ptrs = factors_ptr + row[:, None] * factors_row + column[None, :]
        if product != "none":
            tl.store(factors_ptrs, first.to(element), mask=mask)
            first = first.to(element).to(tl.float32)
        if product == "pair":
            tl.store(factors_ptrs + columns, second.to(element), mask=mask)
            second = second.to(element).to(tl.float32)
        if has_added and activation != "none":
            kept = kept_added_ptr + row[:, None] * columns + column[None, :]
            tl.store(kept, added.to(element), mask=mask)
            added = added.to(element).to(tl.float32)
        values = (first, second, added)
    biases = (first_bias_ptr, second_bias_ptr, added_bias_ptr)
    bias_steps = (first_bias_step, second_bias_step, added_bias_step)
    has_bias = (has_first_bias, has_second_bias, has_added_bias)
    values = add_biases(values, biases, bias_steps, column, column_mask, has_bias, False)
    value = combine_branches(values, product, has_added, gate)
    value = activate(value, activation)
    y_ptrs = y_ptr + row[:, None] * y_row + column[None, :] * y_column
    tl.store(y_ptrs, value.to(element), mask=mask)
