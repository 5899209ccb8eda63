"""What the element-wise kernels share on the device; importing this module needs triton.

A tile is [R, L] elements of a matrix whose columns are adjacent in memory. Where channels are last
(``channels_last``) columns are channels and rows everything else; a group is L channels. Otherwise
a group is one channel, columns are its positions and rows the batch. Without constants of a channel
the whole tensor may be one row. Rows, columns and strides are multiples of ``align``, which the
compiler needs to know for loads of 16 bytes.

Half precision is widened to float32 on loading and rounded once. That is also how Triton's
interpreter gets bf16 right, whose own arithmetic it computes wrongly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qcompile.triton_kernels.elementwise.arithmetic import combine


@triton.jit
def widen(x):
    """Return x in the type to compute in: float64, or float32 for everything else."""
    if x.dtype == tl.float64:
        return x
    else:  # noqa: RET505  Triton compiles one of the two
        return x.to(tl.float32)


@triton.jit
def place(
    group,
    tile,
    sizes,
    channels_last: tl.constexpr,
    align: tl.constexpr,
    R: tl.constexpr,  # noqa: N803  sizes are constants of the compiler
    L: tl.constexpr,  # noqa: N803
):
    """Return a spot: rows and columns of a tile, its group, which elements and channels there are.

    ``sizes`` are rows, units of ``align`` columns, tiles beside each other, and channels.
    """
    rows, units, column_tiles, channels = sizes
    columns = units.to(tl.int64) * align
    if channels_last:
        row = tile * R + tl.arange(0, R)
        column = group * L + tl.arange(0, L)
        channels = columns
    else:
        row = tile // column_tiles * R + tl.arange(0, R)
        column = tile % column_tiles * L + tl.arange(0, L)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return row, column, group, mask, channels


@triton.jit
def offsets(strides, spot, channels_last: tl.constexpr, align: tl.constexpr):
    """Return where elements of a tile lie; strides of rows and groups are in units of ``align``."""
    row, column, group, _, _ = spot
    where = row[:, None] * (strides[0].to(tl.int64) * align) + column[None, :]
    if not channels_last:
        where += group * (strides[1].to(tl.int64) * align)
    return where


@triton.jit
def read(ptr, strides, spot, channels_last: tl.constexpr, align: tl.constexpr):
    """Load a tile, in the type to compute in."""
    where = offsets(strides, spot, channels_last, align)
    return widen(tl.load(ptr + where, mask=spot[3], other=0.0))


@triton.jit
def write(ptr, strides, spot, values, channels_last: tl.constexpr, align: tl.constexpr):
    """Store a tile, rounded to the type of what ``ptr`` points to."""
    where = offsets(strides, spot, channels_last, align)
    tl.store(ptr + where, values.to(ptr.dtype.element_ty), mask=spot[3])


@triton.jit
def constant(ptr, slot, spot, channels_last: tl.constexpr):
    """Load a constant of each channel from [slots, channels], to meet a tile."""
    _, column, group, _, channels = spot
    if channels_last:
        loaded = tl.load(ptr + slot * channels + column, mask=column < channels, other=0.0)
        return widen(loaded)[None, :]
    else:  # noqa: RET505  Triton compiles one of the two
        return widen(tl.load(ptr + slot * channels + group))


@triton.jit
def scale_and_shift(constants, slot, spot, affine: tl.constexpr, channels_last: tl.constexpr):
    """Load scale and shift, as far as ``affine`` has them: ``none``, one's name or ``full``."""
    scale = 1.0
    shift = 0.0
    if affine == "scale" or affine == "full":
        scale = constant(constants[0], slot, spot, channels_last)
    if affine == "shift" or affine == "full":
        shift = constant(constants[1], slot, spot, channels_last)
    return scale, shift


@triton.jit
def scaled(x, scale_shift, affine: tl.constexpr):
    """Return x·scale + shift, as far as ``affine`` has them."""
    if affine == "scale" or affine == "full":
        x = x * scale_shift[0]
    if affine == "shift" or affine == "full":
        x = x + scale_shift[1]
    return x


@triton.jit
def slot_of_c(product: tl.constexpr):
    """Return the number of c's constants; a slot is a branch that there is, from 0."""
    return 2 if product == "pair" else 1


@triton.jit
def slot_of_outer(product: tl.constexpr, has_c: tl.constexpr):
    """Return the number of the outer batch norm's constants, behind those of the branches."""
    return (2 if product == "pair" else 1) + (1 if has_c else 0)


@triton.jit
def read_branches(
    pointers,
    strides,
    spot,
    product: tl.constexpr,
    has_c: tl.constexpr,
    channels_last: tl.constexpr,
    align: tl.constexpr,
):
    """Load a, b and c; absent ones repeat a."""
    a = read(pointers[0], strides[0], spot, channels_last, align)
    b = a
    c = a
    if product == "pair":
        b = read(pointers[1], strides[1], spot, channels_last, align)
    if has_c:
        c = read(pointers[2], strides[2], spot, channels_last, align)
    return a, b, c


@triton.jit
def constants_of_branches(
    constants,
    spot,
    product: tl.constexpr,
    has_c: tl.constexpr,
    affine: tl.constexpr,
    channels_last: tl.constexpr,
):
    """Load scales and shifts of a, b and c; absent branches repeat a's."""
    of_a = scale_and_shift(constants, 0, spot, affine, channels_last)
    of_b = of_a
    of_c = of_a
    if product == "pair":
        of_b = scale_and_shift(constants, 1, spot, affine, channels_last)
    if has_c:
        of_c = scale_and_shift(constants, slot_of_c(product), spot, affine, channels_last)
    return of_a, of_b, of_c


@triton.jit
def scale_branches(loaded, fixed, product: tl.constexpr, has_c: tl.constexpr, affine: tl.constexpr):
    """Apply each branch's constants."""
    a, b, c = loaded
    a = scaled(a, fixed[0], affine)
    if product == "pair":
        b = scaled(b, fixed[1], affine)
    if has_c:
        c = scaled(c, fixed[2], affine)
    return a, b, c


@triton.jit
def before_end(
    values,
    of_outer,
    product: tl.constexpr,
    has_c: tl.constexpr,
    gate: tl.constexpr,
    has_outer: tl.constexpr,
    rounded: tl.constexpr,
):
    """Return the combination, and what the activation takes: the combination, or its batch norm's.

    With a batch norm the combination is rounded to the type ``rounded``, in which the forward pass
    has stored it: both passes then agree on the sign of what a ReLU takes.
    """
    y = combine(values, product, has_c, gate)
    z = y
    if has_outer:
        y = widen(y.to(rounded))
        z = scaled(y, of_outer, "full")
    return y, z


@triton.jit
def slope_and_offset(constants, slot, spot, batch: tl.constexpr, channels_last: tl.constexpr):
    """Load by what a batch norm in training makes its gradient depend on the whole channel."""
    slope = 0.0
    offset = 0.0
    if batch:
        slope = constant(constants[2], slot, spot, channels_last)
        offset = constant(constants[3], slot, spot, channels_last)
    return slope, offset


@triton.jit
def through(grad, x, scale, slope_offset, affine: tl.constexpr, batch: tl.constexpr):
    """Return the gradient of what constants are applied to, x, from that of what they give."""
    if affine == "scale" or affine == "full":
        grad = grad * scale
    if batch:
        grad = grad + x * slope_offset[0] + slope_offset[1]
    return grad


@triton.jit
def over_channels(values, channels_last: tl.constexpr):
    """Sum a tile over each channel, to meet tiles."""
    if channels_last:
        return tl.sum(values, axis=0)[None, :]
    else:  # noqa: RET505  Triton compiles one of the two
        return tl.sum(tl.sum(values, axis=1), axis=0)


@triton.jit
def put(ptr, number, spot, values, channels_last: tl.constexpr):
    """Store a number of each channel, as :func:`over_channels` returns, to row ``number``."""
    _, column, group, _, channels = spot
    if channels_last:
        where = ptr + number * channels + column[None, :]
        tl.store(where, values, mask=(column < channels)[None, :])
    else:
        tl.store(ptr + number * channels + group, values)
