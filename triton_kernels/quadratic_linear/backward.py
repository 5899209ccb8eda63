"""Backward kernels of quadratic linear layers; importing this module needs triton.

Three steps: the gradients of what the branches computed, recomputed from x (here) or read back
(``elementwise.py``); from these the gradient of x, and those of the weights. Sums are in a fixed
order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.quadratic_linear.products import (
    add_bias,
    branch_products,
    combine_backward,
    grouped_tile,
    load_tile,
    square,
    store_towards,
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
    has_first: tl.constexpr,
    has_second: tl.constexpr,
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

    Without an activation the added branch is not recomputed: its gradient is ``grad``.
    """
    reads_added: tl.constexpr = has_added and activation != "none"
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
        reads_added,
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
    grad_ptrs = grad_ptr + row[:, None] * grad_row + column[None, :] * grad_column
    mask = row_mask[:, None] & column_mask[None, :]
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


@triton.jit
def towards_input_kernel(
    towards_first_ptr,
    towards_second_ptr,
    towards_added_ptr,
    first_ptr,
    second_ptr,
    added_ptr,
    x_ptr,
    dx_ptr,
    rows,
    columns,
    depth,
    towards_row,
    towards_added_row,
    towards_added_column,
    first_row,
    first_column,
    second_row,
    second_column,
    added_row,
    added_column,
    x_row,
    x_column,
    dx_row,
    has_first: tl.constexpr,
    has_second: tl.constexpr,
    has_added: tl.constexpr,
    squares: tl.constexpr,
    even: tl.constexpr,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
):
    """Store the gradient of x [M, K], which all branches send, one tile a program.

    Here ``columns`` is K, the columns of the result, and ``depth`` is N, what is summed over, so
    that the tile is [block_m, block_n] and the steps are block_k.
    """
    tile_m, tile_n = grouped_tile(rows, columns, block_m, block_n, group)
    row = tile_m.to(tl.int64) * block_m + tl.arange(0, block_m)
    column = tile_n.to(tl.int64) * block_n + tl.arange(0, block_n)
    row_mask, column_mask = (row < rows)[:, None], (column < columns)[None, :]
    inner = tl.arange(0, block_k)
    plain = tl.zeros((block_m, block_n), dtype=tl.float32)
    squared = tl.zeros((block_m, block_n), dtype=tl.float32)
    offsets = row[:, None] * towards_row + inner[None, :]
    first_ds, second_ds = towards_first_ptr + offsets, towards_second_ptr + offsets
    added_ds = towards_added_ptr + row[:, None] * towards_added_row
    added_ds += inner[None, :] * towards_added_column
    first_ws = first_ptr + inner[:, None] * first_row + column[None, :] * first_column
    second_ws = second_ptr + inner[:, None] * second_row + column[None, :] * second_column
    added_ws = added_ptr + inner[:, None] * added_row + column[None, :] * added_column
    for start in range(0, depth, block_k):
        exists = inner < depth - start
        if has_first:
            d = load_tile(first_ds, row_mask, exists[None, :], even, upcast)
            w = load_tile(first_ws, column_mask, exists[:, None], even, upcast)
            plain = tl.dot(d, w, plain, input_precision=precision)
        if has_second:
            d = load_tile(second_ds, row_mask, exists[None, :], even, upcast)
            w = load_tile(second_ws, column_mask, exists[:, None], even, upcast)
            plain = tl.dot(d, w, plain, input_precision=precision)
        if has_added:
            d = load_tile(added_ds, row_mask, exists[None, :], even, upcast)
            w = load_tile(added_ws, column_mask, exists[:, None], even, upcast)
            if squares:
                squared = tl.dot(d, w, squared, input_precision=precision)
            else:
                plain = tl.dot(d, w, plain, input_precision=precision)
        first_ds += block_k
        second_ds += block_k
        added_ds += block_k * towards_added_column
        first_ws += block_k * first_row
        second_ws += block_k * second_row
        added_ws += block_k * added_row
    mask = row_mask & column_mask
    if squares:
        x_ptrs = x_ptr + row[:, None] * x_row + column[None, :] * x_column
        plain += 2.0 * tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32) * squared
    dx_ptrs = dx_ptr + row[:, None] * dx_row + column[None, :]
    tl.store(dx_ptrs, plain.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def towards_weights_kernel(
    towards_first_ptr,
    towards_second_ptr,
    towards_added_ptr,
    x_ptr,
    first_ptr,
    second_ptr,
    added_ptr,
    rows,
    columns,
    depth,
    part_rows,
    towards_row,
    towards_added_row,
    towards_added_column,
    x_row,
    x_column,
    part_step,
    has_first: tl.constexpr,
    has_second: tl.constexpr,
    has_added: tl.constexpr,
    squares: tl.constexpr,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    block_m: tl.constexpr,
    group: tl.constexpr,
):
    """Store the gradients of the weights, each [N, K], in one pass over x, one tile a program.

    The rows are divided into parts of ``part_rows``, the second axis of programs; the results of a
    part lie ``part_step`` after those of the one before, to be added up in order.
    """
    tile_n, tile_k = grouped_tile(columns, depth, block_n, block_k, group)
    column = tile_n.to(tl.int64) * block_n + tl.arange(0, block_n)
    source = tile_k.to(tl.int64) * block_k + tl.arange(0, block_k)
    column_mask, source_mask = (column < columns)[:, None], (source < depth)[None, :]
    part = tl.program_id(1).to(tl.int64)
    begin = part * part_rows
    count = tl.minimum(rows - begin, part_rows)
    inner = tl.arange(0, block_m)
    row = begin + inner
    first = tl.zeros((block_n, block_k), dtype=tl.float32)
    second = tl.zeros((block_n, block_k), dtype=tl.float32)
    added = tl.zeros((block_n, block_k), dtype=tl.float32)
    # Read transposed: transposing what was loaded would keep loads from running ahead.
    offsets = row[None, :] * towards_row + column[:, None]
    first_ds, second_ds = towards_first_ptr + offsets, towards_second_ptr + offsets
    added_ds = towards_added_ptr + row[None, :] * towards_added_row
    added_ds += column[:, None] * towards_added_column
    x_ptrs = x_ptr + row[:, None] * x_row + source[None, :] * x_column
    for start in range(0, count, block_m):
        exists = inner < count - start
        x = load_tile(x_ptrs, exists[:, None], source_mask, False, upcast)
        if has_first:
            d = load_tile(first_ds, column_mask, exists[None, :], False, upcast)
            first = tl.dot(d, x, first, input_precision=precision)
        if has_second:
            d = load_tile(second_ds, column_mask, exists[None, :], False, upcast)
            second = tl.dot(d, x, second, input_precision=precision)
        if has_added:
            d = load_tile(added_ds, column_mask, exists[None, :], False, upcast)
            s = square(x) if squares else x
            added = tl.dot(d, s, added, input_precision=precision)
        first_ds += block_m * towards_row
        second_ds += block_m * towards_row
        added_ds += block_m * towards_added_row
        x_ptrs += block_m * x_row
    mask = column_mask & source_mask
    offsets = part * part_step + column[:, None] * depth + source[None, :]
    element = first_ptr.dtype.element_ty
    if has_first:
        tl.store(first_ptr + offsets, first.to(element), mask=mask)
    if has_second:
        tl.store(second_ptr + offsets, second.to(element), mask=mask)
    if has_added:
        tl.store(added_ptr + offsets, added.to(element), mask=mask)
