"""Triton kernels of the full quadratic form; importing this module needs triton.

A row of x is no longer than a tile is wide, so that x is read once, stays in registers, and the
products x W, M·N·K numbers, never reach memory. Sums are in a fixed order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(x_ptr, row, inner, rows, width, x_row, x_column, upcast: tl.constexpr):
    """Return rows of x [block, width], zero outside."""
    mask = (row < rows)[:, None] & (inner < width)[None, :]
    pointers = x_ptr + row[:, None] * x_row + inner[None, :] * x_column
    x = tl.load(pointers, mask=mask, other=0.0)
    return x.to(tl.float32) if upcast else x


@triton.jit
def load_matrix(pointers, mask, upcast: tl.constexpr):
    """Return one output's matrix [width, width], zero outside."""
    w = tl.load(pointers, mask=mask, other=0.0)
    return w.to(tl.float32) if upcast else w


@triton.jit
def scaled(x, factor):
    """Return x with rows or columns multiplied, rounded to its own type once."""
    return (x.to(tl.float32) * factor).to(x.dtype)


@triton.jit
def bilinear_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    rows,
    outputs,
    width,
    x_row,
    x_column,
    w_output,
    w_row,
    w_column,
    y_row,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_o: tl.constexpr,
    block_k: tl.constexpr,
):
    """Store y [M, N], ``block_m`` rows and ``block_o`` outputs a program."""
    row = tl.program_id(0).to(tl.int64) * block_m + tl.arange(0, block_m)
    first = tl.program_id(1).to(tl.int64) * block_o
    inner = tl.arange(0, block_k).to(tl.int64)
    x = load_rows(x_ptr, row, inner, rows, width, x_row, x_column, upcast)
    wide = x.to(tl.float32)
    slot = tl.arange(0, block_o)
    y = tl.zeros((block_m, block_o), dtype=tl.float32)
    w_ptrs = w_ptr + first * w_output + inner[:, None] * w_row + inner[None, :] * w_column
    for step in range(0, block_o):
        size = tl.where(first + step < outputs, width, 0)
        exists = inner < size
        w = load_matrix(w_ptrs, exists[:, None] & exists[None, :], upcast)
        half = tl.dot(x, w, input_precision=precision)
        value = tl.sum(half * wide, 1)
        y = tl.where(slot[None, :] == step, value[:, None], y)
        w_ptrs += w_output
    output = first + slot
    mask = (row < rows)[:, None] & (output < outputs)[None, :]
    y_ptrs = y_ptr + row[:, None] * y_row + output[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bilinear_input_kernel(
    grad_ptr,
    x_ptr,
    w_ptr,
    dx_ptr,
    rows,
    outputs,
    width,
    part_outputs,
    grad_row,
    grad_column,
    x_row,
    x_column,
    w_output,
    w_row,
    w_column,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
):
    """Store Σ grad (W + Wᵀ) x over a part of the outputs, [M, K], parts one after another."""
    row = tl.program_id(0).to(tl.int64) * block_m + tl.arange(0, block_m)
    part = tl.program_id(1).to(tl.int64)
    first = part * part_outputs
    count = tl.minimum(outputs - first, part_outputs)
    inner = tl.arange(0, block_k).to(tl.int64)
    x = load_rows(x_ptr, row, inner, rows, width, x_row, x_column, upcast)
    exists = row < rows
    total = tl.zeros((block_m, block_k), dtype=tl.float32)
    matrix = (inner < width)[:, None] & (inner < width)[None, :]
    plain_ptrs = w_ptr + first * w_output + inner[:, None] * w_row + inner[None, :] * w_column
    turned_ptrs = w_ptr + first * w_output + inner[:, None] * w_column + inner[None, :] * w_row
    grad_ptrs = grad_ptr + row * grad_row + first * grad_column
    for _ in range(0, count):
        grad = tl.load(grad_ptrs, mask=exists, other=0.0).to(tl.float32)
        source = scaled(x, grad[:, None])
        w = load_matrix(plain_ptrs, matrix, upcast)
        total = tl.dot(source, w, total, input_precision=precision)
        w = load_matrix(turned_ptrs, matrix, upcast)
        total = tl.dot(source, w, total, input_precision=precision)
        plain_ptrs += w_output
        turned_ptrs += w_output
        grad_ptrs += grad_column
    mask = exists[:, None] & (inner < width)[None, :]
    dx_ptrs = dx_ptr + (part * rows + row)[:, None] * width + inner[None, :]
    tl.store(dx_ptrs, total.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bilinear_weight_kernel(
    grad_ptr,
    x_ptr,
    dw_ptr,
    rows,
    outputs,
    width,
    part_rows,
    grad_row,
    grad_column,
    x_row,
    x_column,
    precision: tl.constexpr,
    upcast: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
):
    """Store Σ grad x xᵀ over a part of the rows, [N, K, K], one output a program."""
    output = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    begin = part * part_rows
    count = tl.minimum(rows - begin, part_rows)
    step = tl.arange(0, block_m)
    inner = tl.arange(0, block_k).to(tl.int64)
    row = begin + step
    exists = inner < width
    total = tl.zeros((block_k, block_k), dtype=tl.float32)
    far = tl.full((), block_m, tl.int64)
    x_ptrs = x_ptr + row[:, None] * x_row + inner[None, :] * x_column
    turned_ptrs = x_ptr + row[None, :] * x_row + inner[:, None] * x_column
    grad_ptrs = grad_ptr + row * grad_row + output * grad_column
    for start in range(0, count, block_m):
        within = step < count - start
        x = load_matrix(x_ptrs, within[:, None] & exists[None, :], upcast)
        turned = load_matrix(turned_ptrs, exists[:, None] & within[None, :], upcast)
        grad = tl.load(grad_ptrs, mask=within, other=0.0).to(tl.float32)
        total = tl.dot(scaled(turned, grad[None, :]), x, total, input_precision=precision)
        x_ptrs += far * x_row
        turned_ptrs += far * x_row
        grad_ptrs += far * grad_row
    mask = exists[:, None] & exists[None, :]
    dw_ptr += (part * outputs + output) * width * width
    dw_ptrs = dw_ptr + inner[:, None] * width + inner[None, :]
    tl.store(dw_ptrs, total.to(dw_ptr.dtype.element_ty), mask=mask)
