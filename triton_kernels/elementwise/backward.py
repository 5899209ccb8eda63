"""The last pass backward: gradients of the branches, element by element, in place if wanted."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from qcompile.triton_kernels.elementwise.arithmetic import activate_backward, towards_branches
from qcompile.triton_kernels.elementwise.device import (
    before_end,
    constants_of_branches,
    place,
    read,
    read_branches,
    scale_and_shift,
    scale_branches,
    slope_and_offset,
    slot_of_c,
    slot_of_outer,
    through,
    write,
)
from qcompile.triton_kernels.elementwise.launch import run, unspecialised
from qcompile.triton_kernels.elementwise.terms import Branches, Constants, Term
from qcompile.triton_kernels.elementwise.walk import Walk


@triton.jit(do_not_specialize=unspecialised("grad", "a", "b", "c", "out"))
def backward_kernel(
    grad_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    a_out_ptr,
    b_out_ptr,
    c_out_ptr,
    scale_ptr,
    shift_ptr,
    slope_ptr,
    offset_ptr,
    rows,
    units,
    groups,
    column_tiles,
    channels,
    grad_row,
    grad_group,
    a_row,
    a_group,
    b_row,
    b_group,
    c_row,
    c_group,
    out_row,
    out_group,
    product: tl.constexpr,
    has_c: tl.constexpr,
    gate: tl.constexpr,
    activation: tl.constexpr,
    affine: tl.constexpr,
    batch: tl.constexpr,
    has_outer: tl.constexpr,
    want_a: tl.constexpr,
    want_b: tl.constexpr,
    want_c: tl.constexpr,
    in_place: tl.constexpr,
    channels_last: tl.constexpr,
    align: tl.constexpr,
    R: tl.constexpr,  # noqa: N803
    L: tl.constexpr,  # noqa: N803
):
    """Store the gradients of one tile of the branches that are wanted."""
    program = tl.program_id(0).to(tl.int64)
    sizes = (rows, units, column_tiles, channels)
    spot = place(program % groups, program // groups, sizes, channels_last, align, R, L)
    pointers = (a_ptr, b_ptr, c_ptr)
    strides = ((a_row, a_group), (b_row, b_group), (c_row, c_group))
    constants = (scale_ptr, shift_ptr, slope_ptr, offset_ptr)
    loaded = read_branches(pointers, strides, spot, product, has_c, channels_last, align)
    fixed = constants_of_branches(constants, spot, product, has_c, affine, channels_last)
    values = scale_branches(loaded, fixed, product, has_c, affine)
    slot: tl.constexpr = slot_of_outer(product, has_c)
    of_outer = fixed[0]
    if has_outer:
        of_outer = scale_and_shift(constants, slot, spot, "full", channels_last)
    element: tl.constexpr = a_ptr.dtype.element_ty
    y, z = before_end(values, of_outer, product, has_c, gate, has_outer, element)
    grad = read(grad_ptr, (grad_row, grad_group), spot, channels_last, align)
    delta = activate_backward(grad, z, activation)
    if has_outer:
        dependence = slope_and_offset(constants, slot, spot, batch, channels_last)
        delta = through(delta, y, of_outer[0], dependence, "full", batch)
    a, b, c = towards_branches(delta, values, product, gate)
    normed: tl.constexpr = batch and affine != "none"
    fresh = (out_row, out_group)
    if want_a:
        dependence = slope_and_offset(constants, 0, spot, normed, channels_last)
        a = through(a, loaded[0], fixed[0][0], dependence, affine, normed)
        write(a_out_ptr, strides[0] if in_place else fresh, spot, a, channels_last, align)
    if want_b:
        dependence = slope_and_offset(constants, 1, spot, normed, channels_last)
        b = through(b, loaded[1], fixed[1][0], dependence, affine, normed)
        write(b_out_ptr, strides[1] if in_place else fresh, spot, b, channels_last, align)
    if want_c:
        dependence = slope_and_offset(constants, slot_of_c(product), spot, normed, channels_last)
        c = through(c, loaded[2], fixed[2][0], dependence, affine, normed)
        write(c_out_ptr, strides[2] if in_place else fresh, spot, c, channels_last, align)


def launch_backward(
    walk: Walk,
    grad: Tensor,
    branches: Branches,
    constants: Constants,
    term: Term,
    out: Sequence[Tensor | None],
    has_outer: bool = False,
) -> None:
    """Write gradients of the branches a, b, c to those of ``out`` that are not ``None``.

    Args:
        walk: fits all tensors.
        grad: of the output.
        branches: what was combined.
        constants: with slopes and offsets where batch norms were in training.
        term: what was computed.
        out: tensors of the walk, or all wanted ones of ``branches`` itself.
        has_outer: whether the last slot is of a batch norm of the combination.
    """
    targets = [x for x in out if x is not None]
    if not grad.numel() or not targets:
        return
    sources = (branches.a, branches.b, branches.c)
    in_place = targets[0] is next(s for s, o in zip(sources, out, strict=True) if o is not None)
    pointers = {
        f"{name}_out_ptr": targets[0] if x is None else x
        for name, x in zip("abc", out, strict=True)
    }
    run(
        backward_kernel,
        (walk.groups * walk.tiles,),
        grad,
        grad_ptr=grad,
        **branches.pointers(),
        **pointers,
        **constants.pointers(grad),
        **constants.slopes(grad),
        **walk.strides("grad", grad),
        **branches.strides(walk),
        **walk.strides("out", None if in_place else targets[0]),
        product=term.product,
        has_c=branches.c is not None,
        gate=term.gate,
        activation=term.activation,
        affine=constants.affine,
        batch=constants.slope is not None,
        has_outer=has_outer,
        want_a=out[0] is not None,
        want_b=out[1] is not None,
        want_c=out[2] is not None,
        in_place=in_place,
        **walk.sizes(),
    )
