"""Fused gradients of x and of the weights; importing this module needs triton.

Each kernel forms the gradients of the branches' values a tile at a time and multiplies them at
once, so that they never reach memory. The values come from memory, where the forward pass has kept
them, or are recomputed from x, whose rows then have to fit a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.quadratic_linear.products import (
    add_biases,
    grouped_tile,
    load_tile,
    load_values,
    span,
    square,
    towards_values,
)


@triton.jit
def multiplied(x, w, turned: tl.constexpr, precision: tl.constexpr):
    """Return x Wᵀ of tiles [M, K] and [N, K], float32 [M, N], or [N, M] if ``turned``."""
    if turned:
        return tl.dot(w, tl.trans(x), input_precision=precision)
    else:  # noqa: RET505  Triton compiles one of the two
        return tl.dot(x, tl.trans(w), input_precision=precision)


@triton.jit
def recompute(
    x,
    weights,
    product: tl.constexpr,
    has_added: tl.constexpr,
    squares: tl.constexpr,
    turned: tl.constexpr,
    precision: tl.constexpr,
):
    """Return what branches compute from a tile of whole rows of x; absent ones repeat another.

    Args:
        x: [M, K].
        weights: of each branch, [N, K].
        product: which branches there are.
        has_added: likewise; one of them is there.
        squares: whether the added branch takes x∘x.
        turned: whether to return [N, M], not [M, N].
        precision: of float32 products.
    """
    if product == "none":
        added = multiplied(square(x), weights[2], turned, precision)
        first = added
        second = added
    else:
        first = multiplied(x, weights[0], turned, precision)
        second = first
        added = first
        if product == "pair":
            second = multiplied(x, weights[1], turned, precision)
        if has_added:
            source = square(x) if squares else x
            added = multiplied(source, weights[2], turned, precision)
    return first, second, added


@triton.jit
def input_gradient_kernel(
    grad_ptr,
    x_ptr,
    first_value_ptr,
    second_value_ptr,
    added_value_ptr,
    first_ptr,
    second_ptr,
    added_ptr,
    first_bias_ptr,
    second_bias_ptr,
    added_bias_ptr,
    dx_ptr,
    rows,
    columns,
    depth,
    grad_row,
    grad_column,
    x_row,
    x_column,
    factors_row,
    added_value_row,
    first_row,
    first_column,
    second_row,
    second_column,
    added_row,
    added_column,
    first_bias_step,
    second_bias_step,
    added_bias_step,
    dx_row,
    product: tl.constexpr,
    has_added: tl.constexpr,
    has_first_bias: tl.constexpr,
    has_second_bias: tl.constexpr,
    has_added_bias: tl.constexpr,
    squares: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    recomputes: tl.constexpr,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
):
    """Store the gradient of x [M, K], a tile [block_m, block_k] a program, N in steps of block_n.

    If it ``recomputes`` the values, block_k covers K.
    """
    reads_added: tl.constexpr = has_added and activation != "none"
    tile_m, tile_k = grouped_tile(rows, depth, block_m, block_k, group)
    row, source = span(tile_m, block_m), span(tile_k, block_k)
    row_mask, source_mask = (row < rows)[:, None], (source < depth)[None, :]
    x_ptrs = x_ptr + row[:, None] * x_row + source[None, :] * x_column
    x = tl.zeros((block_m, block_k), dtype=tl.float32)
    if recomputes:
        x = load_tile(x_ptrs, row_mask, source_mask, False, upcast)
    plain = tl.zeros((block_m, block_k), dtype=tl.float32)
    squared = tl.zeros((block_m, block_k), dtype=tl.float32)
    biases = (first_bias_ptr, second_bias_ptr, added_bias_ptr)
    bias_steps = (first_bias_step, second_bias_step, added_bias_step)
    has_bias = (has_first_bias, has_second_bias, has_added_bias and reads_added)
    inner = tl.arange(0, block_n)
    for start in range(0, columns, block_n):
        column = start + inner.to(tl.int64)
        exists = column < columns
        mask = row_mask & exists[None, :]
        w = tl.zeros((block_n, block_k), dtype=x_ptr.dtype.element_ty)
        first_w, second_w, added_w = w, w, w
        if product != "none":
            ptrs = first_ptr + column[:, None] * first_row + source[None, :] * first_column
            first_w = load_tile(ptrs, exists[:, None], source_mask, False, upcast)
        if product == "pair":
            ptrs = second_ptr + column[:, None] * second_row + source[None, :] * second_column
            second_w = load_tile(ptrs, exists[:, None], source_mask, False, upcast)
        if has_added:
            ptrs = added_ptr + column[:, None] * added_row + source[None, :] * added_column
            added_w = load_tile(ptrs, exists[:, None], source_mask, False, upcast)
        grad_ptrs = grad_ptr + row[:, None] * grad_row + column[None, :] * grad_column
        grad = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
        towards = (grad, grad, grad)
        if product != "none" or reads_added:
            if recomputes:
                weights = (first_w, second_w, added_w)
                values = recompute(x, weights, product, reads_added, squares, False, precision)
            else:
                pointers = (first_value_ptr, second_value_ptr, added_value_ptr)
                factors_at = row[:, None] * factors_row + column[None, :]
                added_at = row[:, None] * added_value_row + column[None, :]
                values = load_values(pointers, factors_at, added_at, mask, product, reads_added)
            values = add_biases(values, biases, bias_steps, column, exists, has_bias, False)
            towards = towards_values(grad, values, product, has_added, gate, activation)
        if product != "none":
            d = towards[0].to(first_w.dtype)
            plain = tl.dot(d, first_w, plain, input_precision=precision)
        if product == "pair":
            d = towards[1].to(second_w.dtype)
            plain = tl.dot(d, second_w, plain, input_precision=precision)
        if has_added:
            d = towards[2].to(added_w.dtype)
            if squares:
                squared = tl.dot(d, added_w, squared, input_precision=precision)
            else:
                plain = tl.dot(d, added_w, plain, input_precision=precision)
    mask = row_mask & source_mask
    if squares:
        if not recomputes:
            x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
        plain += 2.0 * x.to(tl.float32) * squared
    dx_ptrs = dx_ptr + row[:, None] * dx_row + source[None, :]
    tl.store(dx_ptrs, plain.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradients_kernel(
    grad_ptr,
    x_ptr,
    first_value_ptr,
    second_value_ptr,
    added_value_ptr,
    first_ptr,
    second_ptr,
    added_ptr,
    first_bias_ptr,
    second_bias_ptr,
    added_bias_ptr,
    first_out_ptr,
    second_out_ptr,
    added_out_ptr,
    sums_ptr,
    rows,
    columns,
    depth,
    part_rows,
    grad_row,
    grad_column,
    x_row,
    x_column,
    factors_row,
    added_value_row,
    first_row,
    first_column,
    second_row,
    second_column,
    added_row,
    added_column,
    first_bias_step,
    second_bias_step,
    added_bias_step,
    part_step,
    product: tl.constexpr,
    has_added: tl.constexpr,
    has_first_bias: tl.constexpr,
    has_second_bias: tl.constexpr,
    has_added_bias: tl.constexpr,
    wants_first: tl.constexpr,
    wants_second: tl.constexpr,
    wants_added: tl.constexpr,
    has_sums: tl.constexpr,
    squares: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    recomputes: tl.constexpr,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
):
    """Store the gradients of the weights, [N, K] each, in one pass over x, one tile a program.

    The rows, in steps of block_m, are divided into parts of ``part_rows``, the second axis of
    programs; the results of a part lie ``part_step`` after those of the one before, to be added up
    in order. So do sums of the values' gradients, float32 [parts, 3, N]. If it ``recomputes`` the
    values, block_k covers K. Everything but x is turned: a row for each output.
    """
    reads_added: tl.constexpr = has_added and activation != "none"
    tile_n, tile_k = grouped_tile(columns, depth, block_n, block_k, group)
    column, source = span(tile_n, block_n), span(tile_k, block_k)
    column_mask, source_mask = column < columns, (source < depth)[None, :]
    exists_column = column_mask[:, None]
    part = tl.program_id(1).to(tl.int64)
    begin = part * part_rows
    count = tl.minimum(rows - begin, part_rows)
    w = tl.zeros((block_n, block_k), dtype=x_ptr.dtype.element_ty)
    first_w, second_w, added_w = w, w, w
    if recomputes:
        if product != "none":
            ptrs = first_ptr + column[:, None] * first_row + source[None, :] * first_column
            first_w = load_tile(ptrs, exists_column, source_mask, False, upcast)
        if product == "pair":
            ptrs = second_ptr + column[:, None] * second_row + source[None, :] * second_column
            second_w = load_tile(ptrs, exists_column, source_mask, False, upcast)
        if reads_added:
            ptrs = added_ptr + column[:, None] * added_row + source[None, :] * added_column
            added_w = load_tile(ptrs, exists_column, source_mask, False, upcast)
    biases = (first_bias_ptr, second_bias_ptr, added_bias_ptr)
    bias_steps = (first_bias_step, second_bias_step, added_bias_step)
    has_bias = (has_first_bias, has_second_bias, has_added_bias and reads_added)
    first = tl.zeros((block_n, block_k), dtype=tl.float32)
    second = tl.zeros((block_n, block_k), dtype=tl.float32)
    added = tl.zeros((block_n, block_k), dtype=tl.float32)
    first_sum = tl.zeros((block_n,), dtype=tl.float32)
    second_sum = tl.zeros((block_n,), dtype=tl.float32)
    added_sum = tl.zeros((block_n,), dtype=tl.float32)
    inner = tl.arange(0, block_m)
    for start in range(0, count, block_m):
        row = begin + start + inner
        exists = inner < count - start
        mask = exists_column & exists[None, :]
        x_ptrs = x_ptr + row[:, None] * x_row + source[None, :] * x_column
        x = load_tile(x_ptrs, exists[:, None], source_mask, False, upcast)
        grad_ptrs = grad_ptr + row[None, :] * grad_row + column[:, None] * grad_column
        grad = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
        towards = (grad, grad, grad)
        if product != "none" or reads_added:
            if recomputes:
                weights = (first_w, second_w, added_w)
                values = recompute(x, weights, product, reads_added, squares, True, precision)
            else:
                pointers = (first_value_ptr, second_value_ptr, added_value_ptr)
                factors_at = row[None, :] * factors_row + column[:, None]
                added_at = row[None, :] * added_value_row + column[:, None]
                values = load_values(pointers, factors_at, added_at, mask, product, reads_added)
            values = add_biases(values, biases, bias_steps, column, column_mask, has_bias, True)
            towards = towards_values(grad, values, product, has_added, gate, activation)
        if wants_first:
            first = tl.dot(towards[0].to(x.dtype), x, first, input_precision=precision)
        if wants_second:
            second = tl.dot(towards[1].to(x.dtype), x, second, input_precision=precision)
        if wants_added:
            factor = square(x) if squares else x
            added = tl.dot(towards[2].to(x.dtype), factor, added, input_precision=precision)
        if has_sums:
            first_sum += tl.sum(towards[0], 1)
            second_sum += tl.sum(towards[1], 1)
            added_sum += tl.sum(towards[2], 1)
    mask = exists_column & source_mask
    offsets = part * part_step + column[:, None] * depth + source[None, :]
    element = first_out_ptr.dtype.element_ty
    if wants_first:
        tl.store(first_out_ptr + offsets, first.to(element), mask=mask)
    if wants_second:
        tl.store(second_out_ptr + offsets, second.to(element), mask=mask)
    if wants_added:
        tl.store(added_out_ptr + offsets, added.to(element), mask=mask)
    if has_sums and tile_k == 0:
        sums_ptrs = sums_ptr + part * 3 * columns + column
        tl.store(sums_ptrs, first_sum, mask=column_mask)
        tl.store(sums_ptrs + columns, second_sum, mask=column_mask)
        tl.store(sums_ptrs + 2 * columns, added_sum, mask=column_mask)
