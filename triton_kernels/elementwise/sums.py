"""Sums over each channel that the backward pass needs, in two stages and therefore in fixed order.

Of each slot, a branch or the outer batch norm: Σ g and Σ g·(x − mean), where g is the gradient of
what its constants give and x what they take. These are the gradients of shift and scale; a batch
norm in training makes slope and offset of them, by which its gradient depends on the whole batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcompile.triton_kernels.elementwise.arithmetic import activate_backward, towards_branches
from qcompile.triton_kernels.elementwise.device import (
    before_end,
    constant,
    constants_of_branches,
    over_channels,
    place,
    put,
    read,
    read_branches,
    scale_and_shift,
    scale_branches,
    slope_and_offset,
    slot_of_c,
    slot_of_outer,
    through,
)
from qcompile.triton_kernels.elementwise.launch import chunked, run, unspecialised
from qcompile.triton_kernels.elementwise.terms import Branches, Constants, Term
from qcompile.triton_kernels.elementwise.walk import NUM_WARPS, Walk

BLOCK_CHUNKS, BLOCK_CHANNELS = 64, 16

STAGES: tl.constexpr = tl.constexpr(3)
"""Tiles on the way at once: registers for sums leave room for few warps to hide latency with."""


@triton.jit
def mean_of(mean_ptr, slot, spot, has_mean: tl.constexpr, channels_last: tl.constexpr):
    """Load the mean."""
    if has_mean:
        return constant(mean_ptr, slot, spot, channels_last)
    else:  # noqa: RET505  Triton compiles one of the two
        return 0.0


@triton.jit(do_not_specialize=unspecialised("grad", "a", "b", "c"))
def sums_kernel(
    grad_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    mean_ptr,
    scale_ptr,
    shift_ptr,
    slope_ptr,
    offset_ptr,
    partial_ptr,
    rows,
    units,
    groups,
    column_tiles,
    channels,
    per_chunk,
    tiles,
    grad_row,
    grad_group,
    a_row,
    a_group,
    b_row,
    b_group,
    c_row,
    c_group,
    product: tl.constexpr,
    has_c: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    affine: tl.constexpr,
    has_mean: tl.constexpr,
    batch: tl.constexpr,
    has_outer: tl.constexpr,
    of_outer: tl.constexpr,
    channels_last: tl.constexpr,
    align: tl.constexpr,
    R: tl.constexpr,  # noqa: N803
    L: tl.constexpr,  # noqa: N803
):
    """Add up a chunk of tiles of one group: the outer slot's sums, or those of the branches."""
    program = tl.program_id(0).to(tl.int64)
    group, chunk = program % groups, program // groups
    sizes = (rows, units, column_tiles, channels)
    pointers = (a_ptr, b_ptr, c_ptr)
    strides = ((a_row, a_group), (b_row, b_group), (c_row, c_group))
    constants = (scale_ptr, shift_ptr, slope_ptr, offset_ptr)
    element: tl.constexpr = a_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if element == tl.float64 else tl.float32
    a_plain = tl.zeros([R, L], dtype)
    a_dot = tl.zeros([R, L], dtype)
    b_plain = tl.zeros([R, L], dtype)
    b_dot = tl.zeros([R, L], dtype)
    c_plain = tl.zeros([R, L], dtype)
    c_dot = tl.zeros([R, L], dtype)
    # Constants are those of any tile of the group.
    spot = place(group, group * 0, sizes, channels_last, align, R, L)
    slot: tl.constexpr = slot_of_outer(product, has_c)
    fixed = constants_of_branches(constants, spot, product, has_c, affine, channels_last)
    of_norm = fixed[0]
    dependence = fixed[0]
    if has_outer:
        of_norm = scale_and_shift(constants, slot, spot, "full", channels_last)
    if of_outer:
        mean = mean_of(mean_ptr, slot, spot, has_mean, channels_last)
    else:
        if has_outer:
            dependence = slope_and_offset(constants, slot, spot, batch, channels_last)
        mean = mean_of(mean_ptr, 0, spot, has_mean, channels_last)
        if product == "pair":
            mean_b = mean_of(mean_ptr, 1, spot, has_mean, channels_last)
        if has_c:
            mean_c = mean_of(mean_ptr, slot_of_c(product), spot, has_mean, channels_last)
    start = chunk * per_chunk
    for tile in tl.range(start, tl.minimum(start + per_chunk, tiles), num_stages=STAGES):
        spot = place(group, tile, sizes, channels_last, align, R, L)
        loaded = read_branches(pointers, strides, spot, product, has_c, channels_last, align)
        values = scale_branches(loaded, fixed, product, has_c, affine)
        y, z = before_end(values, of_norm, product, has_c, gate, has_outer, element)
        # Zero where there are no elements, and so is all that is multiplied by it.
        grad = read(grad_ptr, (grad_row, grad_group), spot, channels_last, align)
        delta = activate_backward(grad, z, activation)
        if of_outer:
            a_plain += delta
            a_dot += delta * (y - mean)
        else:
            if has_outer:
                delta = through(delta, y, of_norm[0], dependence, "full", batch)
                delta = tl.where(spot[3], delta, 0.0)
            a, b, c = towards_branches(delta, values, product, gate)
            a_plain += a
            a_dot += a * (loaded[0] - mean)
            if product == "pair":
                b_plain += b
                b_dot += b * (loaded[1] - mean_b)
            if has_c:
                c_plain += c
                c_dot += c * (loaded[2] - mean_c)
    spot = place(group, start, sizes, channels_last, align, R, L)
    if of_outer:
        put(partial_ptr, 2 * chunk, spot, over_channels(a_plain, channels_last), channels_last)
        put(partial_ptr, 2 * chunk + 1, spot, over_channels(a_dot, channels_last), channels_last)
    else:
        first = 2 * slot * chunk
        put(partial_ptr, first, spot, over_channels(a_plain, channels_last), channels_last)
        put(partial_ptr, first + 1, spot, over_channels(a_dot, channels_last), channels_last)
        if product == "pair":
            put(partial_ptr, first + 2, spot, over_channels(b_plain, channels_last), channels_last)
            put(partial_ptr, first + 3, spot, over_channels(b_dot, channels_last), channels_last)
        if has_c:
            at = first + 2 * slot_of_c(product)
            put(partial_ptr, at, spot, over_channels(c_plain, channels_last), channels_last)
            put(partial_ptr, at + 1, spot, over_channels(c_dot, channels_last), channels_last)


@triton.jit(do_not_specialize=["chunks", "channels", "slots", "count", "batch"])
def finish_kernel(
    partial_ptr,
    plain_ptr,
    projected_ptr,
    mean_ptr,
    rstd_ptr,
    scale_ptr,
    slope_ptr,
    offset_ptr,
    chunks,
    channels,
    slots,
    count,
    batch,
    has_norm: tl.constexpr,
    P: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
):
    """Add up chunks of one slot; with a batch norm make slope and offset of the sums.

    ``count`` is the elements of a channel; ``batch`` has a bit for each slot whose statistics are
    the batch's.
    """
    slot = tl.program_id(1)
    channel = tl.program_id(0) * C + tl.arange(0, C)
    there = channel < channels
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    first = tl.zeros([P, C], dtype)
    second = tl.zeros([P, C], dtype)
    for start in range(0, chunks, P):
        chunk = start + tl.arange(0, P)
        at = ((chunk[:, None] * slots + slot) * 2).to(tl.int64) * channels + channel[None, :]
        mask = (chunk < chunks)[:, None] & there[None, :]
        first += tl.load(partial_ptr + at, mask=mask, other=0.0)
        second += tl.load(partial_ptr + at + channels, mask=mask, other=0.0)
    at = slot * channels + channel
    total = tl.sum(first, axis=0)
    dot = tl.sum(second, axis=0)
    if has_norm:
        rstd = tl.load(rstd_ptr + at, mask=there, other=0.0)
        scale = tl.load(scale_ptr + at, mask=there, other=0.0)
        mean = tl.load(mean_ptr + at, mask=there, other=0.0)
        share = ((batch >> slot) & 1).to(dtype) / count.to(dtype)
        dot = dot * rstd
        slope = -scale * rstd * dot * share
        tl.store(slope_ptr + at, slope, mask=there)
        tl.store(offset_ptr + at, -scale * total * share - slope * mean, mask=there)
    tl.store(plain_ptr + at, total, mask=there)
    tl.store(projected_ptr + at, dot, mask=there)


def launch_sums(
    walk: Walk,
    grad: Tensor,
    branches: Branches,
    constants: Constants,
    term: Term,
    *,
    has_outer: bool = False,
    of_outer: bool = False,
) -> Tensor:
    """Return partial sums, [chunks, slots, 2, C], of the branches or of the outer slot alone."""
    slots = 1 if of_outer else len(branches.present)
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    partial = grad.new_empty((walk.chunks, slots, 2, walk.channels), dtype=dtype)
    run(
        sums_kernel,
        (walk.groups * walk.chunks,),
        grad,
        grad_ptr=grad,
        **branches.pointers(),
        mean_ptr=grad if constants.mean is None else constants.mean,
        **constants.pointers(grad),
        **constants.slopes(grad),
        partial_ptr=partial,
        **chunked(walk),
        **walk.strides("grad", grad),
        **branches.strides(walk),
        product=term.product,
        has_c=branches.c is not None,
        gate=term.gate,
        activation=term.activation,
        affine=constants.affine,
        has_mean=constants.mean is not None,
        batch=constants.slope is not None,
        has_outer=has_outer,
        of_outer=of_outer,
        **walk.sizes(),
    )
    return partial


def launch_finish(
    partial: Tensor, constants: Constants, plain: Tensor, projected: Tensor, count: int, batch: int
) -> None:
    """Add up what :func:`launch_sums` returned.

    Args:
        partial: the partial sums of some slots.
        constants: of these slots; if there is a mean, slope and offset are written.
        plain: [slots, C], gets Σ g.
        projected: [slots, C], gets Σ g·x, or Σ g·x̂ if there is a mean.
        count: elements of a channel.
        batch: a bit for each slot whose statistics are the batch's, from the lowest.
    """
    chunks, slots, _, channels = partial.shape
    has_norm = constants.mean is not None
    grid = (triton.cdiv(channels, BLOCK_CHANNELS), slots)
    run(
        finish_kernel,
        grid,
        partial,
        partial_ptr=partial,
        plain_ptr=plain,
        projected_ptr=projected,
        mean_ptr=constants.mean if has_norm else partial,
        rstd_ptr=constants.rstd if has_norm else partial,
        scale_ptr=constants.scale if has_norm else partial,
        **constants.slopes(partial),
        chunks=chunks,
        channels=channels,
        slots=slots,
        count=count,
        batch=batch,
        has_norm=has_norm,
        P=BLOCK_CHUNKS,
        C=BLOCK_CHANNELS,
        num_warps=NUM_WARPS,
    )
