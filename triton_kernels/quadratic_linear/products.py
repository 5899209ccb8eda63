"""What the kernels of quadratic linear layers share; importing this module needs triton.

Kernels know the branches by their roles: ``first`` and ``second`` are multiplied, ``added`` is
added; ``product`` says which there are: ``pair``, ``square`` (first alone) or ``none`` (added
alone). What there is of each branch is a tuple in this order. Rows, columns and steps through
memory are counted in 64 bits, so that no tensor is too large to address.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.elementwise.arithmetic import (
    activate_backward,
    combine,
    towards_branches,
)


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
def span(tile, block: tl.constexpr):
    """Return the rows, or the columns, of a tile: int64 [block]."""
    return tile.to(tl.int64) * block + tl.arange(0, block)


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
    weights,
    x_steps,
    steps,
    row,
    column,
    row_mask,
    column_mask,
    depth,
    product: tl.constexpr,
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
        weights: pointers, [N, K] each.
        x_steps: strides of x.
        steps: strides of each weight.
        row: of x, int64 [block_m].
        column: rows of the weights, int64 [block_n].
        row_mask: which rows exist.
        column_mask: which columns exist.
        depth: K.
        product: which branches there are; the others stay zero.
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
    far, step = inner.to(tl.int64), tl.full((), block_k, tl.int64)
    x_ptrs = x_ptr + row[:, None] * x_steps[0] + far[None, :] * x_steps[1]
    first_ptrs = weights[0] + far[:, None] * steps[0][1] + column[None, :] * steps[0][0]
    second_ptrs = weights[1] + far[:, None] * steps[1][1] + column[None, :] * steps[1][0]
    added_ptrs = weights[2] + far[:, None] * steps[2][1] + column[None, :] * steps[2][0]
    for start in range(0, depth, block_k):
        exists = inner < depth - start
        x = load_tile(x_ptrs, row_mask[:, None], exists[None, :], even, upcast)
        if product != "none":
            w = load_tile(first_ptrs, column_mask[None, :], exists[:, None], even, upcast)
            first = tl.dot(x, w, first, input_precision=precision)
        if product == "pair":
            w = load_tile(second_ptrs, column_mask[None, :], exists[:, None], even, upcast)
            second = tl.dot(x, w, second, input_precision=precision)
        if has_added:
            w = load_tile(added_ptrs, column_mask[None, :], exists[:, None], even, upcast)
            source = square(x) if squares else x
            added = tl.dot(source, w, added, input_precision=precision)
        x_ptrs += step * x_steps[1]
        first_ptrs += step * steps[0][1]
        second_ptrs += step * steps[1][1]
        added_ptrs += step * steps[2][1]
    return first, second, added


@triton.jit
def load_values(
    pointers,
    factors_at,
    added_at,
    mask,
    product: tl.constexpr,
    has_added: tl.constexpr,
):
    """Load what the branches have computed, in float32; absent branches repeat another one.

    Args:
        pointers: of each branch.
        factors_at: where the elements of a factor's tile lie.
        added_at: where those of the added branch do.
        mask: which there are.
        product: which branches there are.
        has_added: likewise; one of them is there.
    """
    if product == "none":
        added = tl.load(pointers[2] + added_at, mask=mask, other=0.0).to(tl.float32)
        first = added
        second = added
    else:
        first = tl.load(pointers[0] + factors_at, mask=mask, other=0.0).to(tl.float32)
        second = first
        added = first
        if product == "pair":
            second = tl.load(pointers[1] + factors_at, mask=mask, other=0.0).to(tl.float32)
        if has_added:
            added = tl.load(pointers[2] + added_at, mask=mask, other=0.0).to(tl.float32)
    return first, second, added


@triton.jit
def load_bias(pointer, step, column, mask, turned: tl.constexpr):
    """Load a bias [N], to be added to each row of a tile, or to each column if ``turned``."""
    loaded = tl.load(pointer + column * step, mask=mask, other=0.0).to(tl.float32)
    return loaded[:, None] if turned else loaded[None, :]


@triton.jit
def add_biases(values, biases, steps, column, mask, has_bias, turned: tl.constexpr):
    """Return what the branches compute plus their biases, as far as there are."""
    first, second, added = values
    if has_bias[0]:
        first += load_bias(biases[0], steps[0], column, mask, turned)
    if has_bias[1]:
        second += load_bias(biases[1], steps[1], column, mask, turned)
    if has_bias[2]:
        added += load_bias(biases[2], steps[2], column, mask, turned)
    return first, second, added


@triton.jit
def combine_branches(values, product: tl.constexpr, has_added: tl.constexpr, gate: tl.constexpr):
    """Return gate(first)∘second + added."""
    first, second, added = values
    if product == "none":
        return added
    else:  # noqa: RET505  Triton compiles one of the two
        return combine((first, second, added), product, has_added, gate)


@triton.jit
def towards_values(
    grad,
    values,
    product: tl.constexpr,
    has_added: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
):
    """Return the gradients of the branches' values from that of the activated combination.

    Where a branch is missing its gradient is one of the others and means nothing.
    """
    if activation != "none":
        value = combine_branches(values, product, has_added, gate)
        grad = activate_backward(grad, value, activation)
    return towards_branches(grad, values, product, gate)


@triton.jit
def store_towards(
    towards,
    towards_ptr,
    sums_ptr,
    row,
    column,
    rows,
    columns,
    tile_m,
    towards_row,
    product: tl.constexpr,
    has_added: tl.constexpr,
    stores_added: tl.constexpr,
    has_sums: tl.constexpr,
):
    """Store the gradients of what the branches computed, and their sums over the tile's rows.

    Args:
        towards: gradients of first, second and added, [block_m, block_n] each.
        towards_ptr: [M, N], [M, 2N] or [M, 3N] with rows ``towards_row`` apart: the gradients that
            are stored, side by side.
        sums_ptr: float32 [tiles, 3, N].
        row: int64 [block_m].
        column: int64 [block_n].
        rows: M.
        columns: N.
        tile_m: which tile of rows this is.
        towards_row: stride.
        product: which branches there are.
        has_added: likewise.
        stores_added: whether the gradient of the added branch is not that of the output.
        has_sums: whether sums are wanted.
    """
    first, second, added = towards
    column_mask = column < columns
    mask = (row < rows)[:, None] & column_mask[None, :]
    element = towards_ptr.dtype.element_ty
    pointers = towards_ptr + row[:, None] * towards_row + column[None, :]
    sums_ptrs = sums_ptr + tile_m.to(tl.int64) * 3 * columns + column
    factors: tl.constexpr = 2 if product == "pair" else (1 if product == "square" else 0)
    if factors > 0:
        tl.store(pointers, first.to(element), mask=mask)
    if factors > 1:
        tl.store(pointers + columns, second.to(element), mask=mask)
    if has_added and stores_added:
        tl.store(pointers + columns * factors, added.to(element), mask=mask)
    if has_sums:
        # Rows past the end hold bias-made values, so they must not count.
        if factors > 0:
            tl.store(sums_ptrs, tl.sum(tl.where(mask, first, 0.0), 0), mask=column_mask)
        if factors > 1:
            total = tl.sum(tl.where(mask, second, 0.0), 0)
            tl.store(sums_ptrs + columns, total, mask=column_mask)
        if has_added:
            total = tl.sum(tl.where(mask, added, 0.0), 0)
            tl.store(sums_ptrs + 2 * columns, total, mask=column_mask)
