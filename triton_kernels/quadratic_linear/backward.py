"""The recomputing backward kernel of quadratic linear layers; importing this module needs triton.

It stores the gradients of what the branches computed, for library products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.quadratic_linear.products import (
    add_biases,
    branch_products,
    grouped_tile,
    span,
    store_towards,
    towards_values,
)


@triton.jit
def towards_kernel(
    grad_ptr,
    x_ptr,
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
    depth,
    grad_row,
    grad_column,
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
    towards_row,
    product: tl.constexpr,
    has_added: tl.constexpr,
    has_first_bias: tl.constexpr,
    has_second_bias: tl.constexpr,
    has_added_bias: tl.constexpr,
    squares: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    has_sums: tl.constexpr,
    even: tl.constexpr,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
):
    """Recompute the branches and store the gradients of their values, one tile a program.

    Without an activation the added branch is not recomputed: its gradient is ``grad``. Sums over
    rows are in a fixed order.
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
        has_added and activation != "none",
        squares,
        even,
        precision,
        upcast,
        block_m,
        block_n,
        block_k,
    )
    biases = (first_bias_ptr, second_bias_ptr, added_bias_ptr)
    bias_steps = (first_bias_step, second_bias_step, added_bias_step)
    has_bias = (has_first_bias, has_second_bias, has_added_bias)
    values = add_biases(values, biases, bias_steps, column, column_mask, has_bias, False)
    grad_ptrs = grad_ptr + row[:, None] * grad_row + column[None, :] * grad_column
    mask = row_mask[:, None] & column_mask[None, :]
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
