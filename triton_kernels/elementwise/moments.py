"""Mean and variance of each channel of a combination, in the pass that computes it; in two stages.

A chunk of tiles is summed up as differences from the mean of its first tile, which loses nothing
where a mean is large beside the deviation. Chunks are merged as Chan, Golub and LeVeque do
("Algorithms for computing the sample variance", 1983), in fixed order.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcompile.triton_kernels.elementwise.arithmetic import combine
from qcompile.triton_kernels.elementwise.device import (
    constants_of_branches,
    over_channels,
    place,
    put,
    read_branches,
    scale_branches,
    widen,
    write,
)
from qcompile.triton_kernels.elementwise.launch import chunked, run, unspecialised
from qcompile.triton_kernels.elementwise.sums import BLOCK_CHANNELS, BLOCK_CHUNKS, STAGES
from qcompile.triton_kernels.elementwise.terms import Branches, Constants, Term
from qcompile.triton_kernels.elementwise.walk import NUM_WARPS, Walk


@triton.jit
def before(
    tile,
    sizes,
    channels_last: tl.constexpr,
    align: tl.constexpr,
    R: tl.constexpr,  # noqa: N803
    L: tl.constexpr,  # noqa: N803
):
    """Count the elements of a channel in the tiles before one."""
    rows, units, column_tiles, _ = sizes
    if channels_last:
        return tl.minimum(tile * R, rows)
    else:  # noqa: RET505  Triton compiles one of the two
        columns = units.to(tl.int64) * align
        above = tl.minimum(tile // column_tiles * R, rows)
        beside = tl.minimum(tile % column_tiles * L, columns)
        return above * columns + tl.minimum(rows - above, R) * beside


@triton.jit(do_not_specialize=unspecialised("a", "b", "c", "y"))
def moments_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    y_ptr,
    scale_ptr,
    shift_ptr,
    partial_ptr,
    rows,
    units,
    groups,
    column_tiles,
    channels,
    per_chunk,
    tiles,
    a_row,
    a_group,
    b_row,
    b_group,
    c_row,
    c_group,
    y_row,
    y_group,
    product: tl.constexpr,
    has_c: tl.constexpr,
    gate: tl.constexpr,
    affine: tl.constexpr,
    store: tl.constexpr,
    channels_last: tl.constexpr,
    align: tl.constexpr,
    R: tl.constexpr,  # noqa: N803
    L: tl.constexpr,  # noqa: N803
):
    """Store count, mean and sum of squared deviations of a chunk, and the combination if wanted."""
    program = tl.program_id(0).to(tl.int64)
    group, chunk = program % groups, program // groups
    sizes = (rows, units, column_tiles, channels)
    pointers = (a_ptr, b_ptr, c_ptr)
    strides = ((a_row, a_group), (b_row, b_group), (c_row, c_group))
    element: tl.constexpr = a_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if element == tl.float64 else tl.float32
    start = chunk * per_chunk
    spot = place(group, start, sizes, channels_last, align, R, L)
    fixed = constants_of_branches(
        (scale_ptr, shift_ptr), spot, product, has_c, affine, channels_last
    )
    loaded = read_branches(pointers, strides, spot, product, has_c, channels_last, align)
    values = scale_branches(loaded, fixed, product, has_c, affine)
    y = tl.where(spot[3], combine(values, product, has_c, gate), 0.0)
    earlier = before(start, sizes, channels_last, align, R, L)
    number = (before(start + 1, sizes, channels_last, align, R, L) - earlier).to(dtype)
    middle = over_channels(y, channels_last) / number
    first = tl.zeros([R, L], dtype)
    second = tl.zeros([R, L], dtype)
    stop = tl.minimum(start + per_chunk, tiles)
    for tile in tl.range(start, stop, num_stages=STAGES):
        spot = place(group, tile, sizes, channels_last, align, R, L)
        loaded = read_branches(pointers, strides, spot, product, has_c, channels_last, align)
        values = scale_branches(loaded, fixed, product, has_c, affine)
        y = widen(combine(values, product, has_c, gate).to(element))  # as it is stored
        if store:
            write(y_ptr, (y_row, y_group), spot, y, channels_last, align)
        difference = tl.where(spot[3], y - middle, 0.0)
        first += difference
        second += difference * difference
    number = (before(stop, sizes, channels_last, align, R, L) - earlier).to(dtype)
    total = over_channels(first, channels_last)
    spread = tl.maximum(over_channels(second, channels_last) - total * total / number, 0.0)
    put(partial_ptr, 3 * chunk, spot, number, channels_last)
    put(partial_ptr, 3 * chunk + 1, spot, middle + total / number, channels_last)
    put(partial_ptr, 3 * chunk + 2, spot, spread, channels_last)


@triton.jit
def from_bits(bits):
    """Return the float64 whose bits these are: Triton passes floats as float32."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["chunks", "channels", "count", "eps_bits", "momentum_bits"])
def finish_moments_kernel(
    partial_ptr,
    weight_ptr,
    bias_ptr,
    old_mean_ptr,
    old_variance_ptr,
    mean_ptr,
    rstd_ptr,
    scale_ptr,
    shift_ptr,
    new_mean_ptr,
    new_variance_ptr,
    chunks,
    channels,
    count,
    eps_bits,
    momentum_bits,
    has_weight: tl.constexpr,
    has_bias: tl.constexpr,
    tracked: tl.constexpr,
    P: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
):
    """Merge chunks; store mean, one over the deviation, scale and shift, and running statistics."""
    channel = tl.program_id(0) * C + tl.arange(0, C)
    there = channel < channels
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    number = count.to(dtype)
    sums = tl.zeros([P, C], dtype)
    for start in range(0, chunks, P):
        chunk = start + tl.arange(0, P)
        at = (3 * chunk[:, None]).to(tl.int64) * channels + channel[None, :]
        mask = (chunk < chunks)[:, None] & there[None, :]
        part = tl.load(partial_ptr + at, mask=mask, other=0.0)
        sums += part * tl.load(partial_ptr + at + channels, mask=mask, other=0.0)
    mean = tl.sum(sums, axis=0) / number
    sums = tl.zeros([P, C], dtype)
    for start in range(0, chunks, P):
        chunk = start + tl.arange(0, P)
        at = (3 * chunk[:, None]).to(tl.int64) * channels + channel[None, :]
        mask = (chunk < chunks)[:, None] & there[None, :]
        part = tl.load(partial_ptr + at, mask=mask, other=0.0)
        apart = tl.load(partial_ptr + at + channels, mask=mask, other=0.0) - mean[None, :]
        spread = tl.load(partial_ptr + at + 2 * channels, mask=mask, other=0.0)
        sums += spread + part * apart * apart
    spread = tl.sum(sums, axis=0)
    variance = spread / number
    rstd = 1.0 / tl.sqrt(variance + from_bits(eps_bits).to(dtype))
    scale = rstd
    if has_weight:
        scale = rstd * tl.load(weight_ptr + channel, mask=there, other=0.0).to(dtype)
    shift = -mean * scale
    if has_bias:
        shift += tl.load(bias_ptr + channel, mask=there, other=0.0).to(dtype)
    tl.store(mean_ptr + channel, mean, mask=there)
    tl.store(rstd_ptr + channel, rstd, mask=there)
    tl.store(scale_ptr + channel, scale, mask=there)
    tl.store(shift_ptr + channel, shift, mask=there)
    if tracked:
        momentum = from_bits(momentum_bits).to(dtype)
        old = tl.load(old_mean_ptr + channel, mask=there, other=0.0).to(dtype)
        new = old + momentum * (mean - old)
        tl.store(new_mean_ptr + channel, new.to(new_mean_ptr.dtype.element_ty), mask=there)
        old = tl.load(old_variance_ptr + channel, mask=there, other=0.0).to(dtype)
        new = old + momentum * (spread / (number - 1.0) - old)
        tl.store(new_variance_ptr + channel, new.to(new_variance_ptr.dtype.element_ty), mask=there)


def launch_moments(
    walk: Walk, branches: Branches, constants: Constants, term: Term, y: Tensor | None
) -> Tensor:
    """Return count, mean and sum of squared deviations of each chunk, [chunks, 3, C].

    Args:
        walk: fits all tensors.
        branches: what is combined; one tensor alone for its own moments.
        constants: of the branches.
        term: how they are combined; its activation is not applied.
        y: gets the combination, rounded, whose moments are those returned; may be a branch.
    """
    dtype = torch.float64 if branches.a.dtype == torch.float64 else torch.float32
    partial = branches.a.new_empty((walk.chunks, 3, walk.channels), dtype=dtype)
    run(
        moments_kernel,
        (walk.groups * walk.chunks,),
        branches.a,
        **branches.pointers(),
        y_ptr=branches.a if y is None else y,
        **constants.pointers(branches.a),
        partial_ptr=partial,
        **chunked(walk),
        **branches.strides(walk),
        **walk.strides("y", y),
        product=term.product,
        has_c=branches.c is not None,
        gate=term.gate,
        affine=constants.affine,
        store=y is not None,
        **walk.sizes(),
    )
    return partial


def launch_finish_moments(
    partial: Tensor,
    count: int,
    affine: tuple[Tensor | None, Tensor | None],
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    momentum: float,
    out: tuple[Tensor, Tensor, Tensor, Tensor],
) -> list[Tensor]:
    """Merge chunks to a batch norm's constants and return its new running mean and variance.

    Args:
        partial: what :func:`launch_moments` returned.
        count: elements of a channel.
        affine: weight and bias, [C] or ``None``.
        running: running mean and variance, [C], or ``None``; not written to.
        eps: added to the variance.
        momentum: weight of this batch in the running statistics.
        out: get mean, one over the deviation, scale and shift, [C] each.
    """
    chunks, _, channels = partial.shape
    weight, bias = affine
    new = [] if running is None else [torch.empty_like(x) for x in running]
    old = running or (partial, partial)
    fresh = new or [partial, partial]
    names = ("mean_ptr", "rstd_ptr", "scale_ptr", "shift_ptr")
    run(
        finish_moments_kernel,
        (triton.cdiv(channels, BLOCK_CHANNELS),),
        partial,
        partial_ptr=partial,
        weight_ptr=partial if weight is None else weight,
        bias_ptr=partial if bias is None else bias,
        old_mean_ptr=old[0],
        old_variance_ptr=old[1],
        **dict(zip(names, out, strict=True)),
        new_mean_ptr=fresh[0],
        new_variance_ptr=fresh[1],
        chunks=chunks,
        channels=channels,
        count=count,
        eps_bits=_bits(eps),
        momentum_bits=_bits(momentum),
        has_weight=weight is not None,
        has_bias=bias is not None,
        tracked=running is not None,
        P=BLOCK_CHUNKS,
        C=BLOCK_CHANNELS,
        num_warps=NUM_WARPS,
    )
    return new


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
