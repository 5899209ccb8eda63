"""What the kernels of quadratic linear layers share; importing this module needs triton.

Kernels know the branches by their roles: ``first`` and ``second`` are multiplied, ``added`` is
added. Rows are counted in 64 bits, so that no tensor is too large to address.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.quadratic_linear.activations import activate, activate_backward


@triton.jit
def grouped_tile(rows, columns, block_m: tl.constexpr, block_n: tl.constexpr, group: tl.constexpr):
    """Return the tile of this program: column by column within ``group`` rows of tiles.

    Programs that run at one time then share what they read in the L2 cache.
    """
    tiles_m, tiles_n = tl.cdiv(rows, block_m), tl.cdiv(columns, block_n)
    program = tl.program_id(0)
    in_group = group * tiles_n
    start = (program // in_group) * group
    height = min(tiles_m - start, group)
    inside = program % in_group
    return start + inside % height, inside // height


@triton.jit
def load_tile(pointers, row_mask, column_mask, even: tl.constexpr, upcast: tl.constexpr):
    """Load a tile, zero outside; without ``column_mask`` if ``even``.

    Args:
        pointers: [rows, columns].
        row_mask: [rows, 1].
        column_mask: [1, columns].
        even: whether all columns exist.
        upcast: to float32, for Triton's interpreter, which computes garbage in bfloat16.
    """
    if even:
        tile = tl.load(pointers, mask=row_mask, other=0.0)
    else:
        tile = tl.load(pointers, mask=row_mask & column_mask, other=0.0)
    if upcast:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def square(tile):
    """Return tile∘tile, rounded to the tile's own type once."""
    wide = tile.to(tl.float32)
    return (wide * wide).to(tile.dtype)


@triton.jit
def branch_products(
    x_ptr,
    first_ptr,
    second_ptr,
    added_ptr,
    rows,
    columns,
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
):
    """Return x W of the three branches, float32 [block_m, block_n], in one pass over x.

    Args:
        x_ptr: [M, K].
        first_ptr: [N, K], and so are the other weights.
        second_ptr: likewise.
        added_ptr: likewise.
        rows: of x, int64 [block_m].
        columns: rows of the weights, int64 [block_n].
        row_mask: which rows exist.
        column_mask: which columns exist.
        depth: K.
        x_row: stride; so are those that follow.
        x_column: stride.
        first_row: stride.
        first_column: stride.
        second_row: stride.
        second_column: stride.
        added_row: stride.
        added_column: stride.
        has_first: which branches there are; the others stay zero.
        has_second: likewise.
        has_added: likewise.
        squares: whether the added branch takes x∘x.
        even: whether K is a multiple of block_k.
        precision: of float32 products, ``tf32`` or ``ieee``.
        upcast: whether the interpreter runs this.
        block_m: tile sizes.
        block_n: likewise.
        block_k: likewise.
    """
    first = tl.zeros((block_m, block_n), dtype=tl.float32)
    second = tl.zeros((block_m, block_n), dtype=tl.float32)
    added = tl.zeros((block_m, block_n), dtype=tl.float32)
    inner = tl.arange(0, block_k)
    x_ptrs = x_ptr + rows[:, None] * x_row + inner[None, :] * x_column
    first_ptrs = first_ptr + inner[:, None] * first_column + columns[None, :] * first_row
    second_ptrs = second_ptr + inner[:, None] * second_column + columns[None, :] * second_row
    added_ptrs = added_ptr + inner[:, None] * added_column + columns[None, :] * added_row
    for start in range(0, depth, block_k):
        exists = inner < depth - start
        x = load_tile(x_ptrs, row_mask[:, None], exists[None, :], even, upcast)
        if has_first:
            w = load_tile(first_ptrs, column_mask[None, :], exists[:, None], even, upcast)
            first = tl.dot(x, w, first, input_precision=precision)
        if has_second:
            w = load_tile(second_ptrs, column_mask[None, :], exists[:, None], even, upcast)
            second = tl.dot(x, w, second, input_precision=precision)
        if has_added:
            w = load_tile(added_ptrs, column_mask[None, :], exists[:, None], even, upcast)
            source = square(x) if squares else x
            added = tl.dot(source, w, added, input_precision=precision)
        x_ptrs += block_k * x_column
        first_ptrs += block_k * first_column
        second_ptrs += block_k * second_column
        added_ptrs += block_k * added_column
    return first, second, added


@triton.jit
def add_bias(value, pointer, stride, columns, mask, has_bias: tl.constexpr):
    """Return value plus a bias [N], if there is one."""
    if has_bias:
        bias = tl.load(pointer + columns * stride, mask=mask, other=0.0).to(tl.float32)
        value += bias[None, :]
    return value


@triton.jit
def combine(
    first,
    second,
    added,
    has_first: tl.constexpr,
    has_second: tl.constexpr,
    has_added: tl.constexpr,
    gate: tl.constexpr,
):
    """Return gate(first) ∘ second + added; a missing second is the first."""
    if has_first:
        value = activate(first, gate) * (second if has_second else first)
        if has_added:
            value += added
    else:
        value = added
    return value


@triton.jit
def combine_backward(
    grad,
    first,
    second,
    added,
    has_first: tl.constexpr,
    has_second: tl.constexpr,
    has_added: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
):
    """Return the gradients of first, second and added from that of the activated combination.

    Where a branch is missing its gradient is one of the others and means nothing.
    """
    if activation != "none":
        value = combine(first, second, added, has_first, has_second, has_added, gate)
        grad = activate_backward(grad, value, activation)
    towards_first = grad
    towards_second = grad
    if has_second:
        towards_first = activate_backward(grad * second, first, gate)
        towards_second = grad * activate(first, gate)
    elif has_first:
        towards_first = 2.0 * grad * first
    return towards_first, towards_second, grad


@triton.jit
def store_towards(
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
    has_first: tl.constexpr,
    has_second: tl.constexpr,
    has_added: tl.constexpr,
    stores_added: tl.constexpr,
    has_sums: tl.constexpr,
):
    """Store the gradients of what the branches computed, and their sums over the tile's rows.

    Args:
        towards_first: [block_m, block_n], and so are the other gradients.
        towards_second: likewise.
        towards_added: likewise.
        towards_ptr: [M, N], [M, 2N] or [M, 3N] with rows ``towards_row`` apart: the gradients that
            are stored, side by side.
        sums_ptr: float32 [tiles, 3, N].
        row: int64 [block_m].
        column: int64 [block_n].
        rows: M.
        columns: N.
        tile_m: which tile of rows this is.
        towards_row: stride.
        has_first: which branches there are.
        has_second: likewise.
        has_added: likewise.
        stores_added: whether the gradient of the added branch is not that of the output.
        has_sums: whether sums are wanted.
    """
    column_mask = column < columns
    mask = (row < rows)[:, None] & column_mask[None, :]
    offsets = row[:, None] * towards_row + column[None, :]
    element = towards_ptr.dtype.element_ty
    pointers = towards_ptr + offsets
    sums_ptrs = sums_ptr + tile_m.to(tl.int64) * 3 * columns + column
    if has_first:
        tl.store(pointers, towards_first.to(element), mask=mask)
        if has_sums:
            # Rows past the end hold bias-made values, so they must not count.
            tl.store(sums_ptrs, tl.sum(tl.where(mask, towards_first, 0.0), 0), mask=column_mask)
    if has_second:
        tl.store(pointers + columns, towards_second.to(element), mask=mask)
        if has_sums:
            total = tl.sum(tl.where(mask, towards_second, 0.0), 0)
            tl.store(sums_ptrs + columns, total, mask=column_mask)
    if has_added:
        if stores_added:
            before = columns * (has_first + has_second)
            tl.store(pointers + before, towards_added.to(element), mask=mask)
        if has_sums:
            total = tl.sum(tl.where(mask, towards_added, 0.0), 0)
            tl.store(sums_ptrs + 2 * columns, total, mask=column_mask)
