"""The forward kernel: act(gate(a)∘b + c), each branch with constants of its channels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qcompile.triton_kernels.elementwise.arithmetic import activate
from qcompile.triton_kernels.elementwise.device import (
    before_end,
    constants_of_branches,
    place,
    read_branches,
    scale_and_shift,
    scale_branches,
    slot_of_outer,
    write,
)
from qcompile.triton_kernels.elementwise.launch import run, unspecialised
from qcompile.triton_kernels.elementwise.terms import Branches, Constants, Term
from qcompile.triton_kernels.elementwise.walk import Walk


@triton.jit(do_not_specialize=unspecialised("a", "b", "c", "y"))
def forward_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    y_ptr,
    scale_ptr,
    shift_ptr,
    rows,
    units,
    groups,
    column_tiles,
    channels,
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
    activation: tl.constexpr,
    affine: tl.constexpr,
    has_outer: tl.constexpr,
    channels_last: tl.constexpr,
    align: tl.constexpr,
    R: tl.constexpr,  # noqa: N803
    L: tl.constexpr,  # noqa: N803
):
    """Store the activated combination of one tile."""
    program = tl.program_id(0).to(tl.int64)
    sizes = (rows, units, column_tiles, channels)
    spot = place(program % groups, program // groups, sizes, channels_last, align, R, L)
    pointers = (a_ptr, b_ptr, c_ptr)
    strides = ((a_row, a_group), (b_row, b_group), (c_row, c_group))
    constants = (scale_ptr, shift_ptr)
    loaded = read_branches(pointers, strides, spot, product, has_c, channels_last, align)
    fixed = constants_of_branches(constants, spot, product, has_c, affine, channels_last)
    values = scale_branches(loaded, fixed, product, has_c, affine)
    of_outer = fixed[0]
    if has_outer:
        slot: tl.constexpr = slot_of_outer(product, has_c)
        of_outer = scale_and_shift(constants, slot, spot, "full", channels_last)
    element: tl.constexpr = y_ptr.dtype.element_ty
    _, z = before_end(values, of_outer, product, has_c, gate, has_outer, element)
    write(y_ptr, (y_row, y_group), spot, activate(z, activation), channels_last, align)


def launch_forward(
    walk: Walk,
    branches: Branches,
    constants: Constants,
    term: Term,
    y: Tensor,
    has_outer: bool = False,
) -> None:
    """Write the activated combination to ``y``, which may be one of the branches.

    Args:
        walk: fits all tensors.
        branches: what is combined.
        constants: of the branches.
        term: how they are combined.
        y: gets the result.
        has_outer: whether the last slot is of a batch norm of the combination.
    """
    if y.numel():
        run(
            forward_kernel,
            (walk.groups * walk.tiles,),
            y,
            **branches.pointers(),
            y_ptr=y,
            **constants.pointers(y),
            **branches.strides(walk),
            **walk.strides("y", y),
            product=term.product,
            has_c=branches.c is not None,
            gate=term.gate,
            activation=term.activation,
            affine=constants.affine,
            has_outer=has_outer,
            **walk.sizes(),
        )
