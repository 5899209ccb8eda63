"""The Hadamard epilogue by kernels; importing this module needs triton."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.triton_kernels.elementwise.backward import launch_backward
from qcompile.triton_kernels.elementwise.forward import launch_forward
from qcompile.triton_kernels.elementwise.sums import launch_finish, launch_sums
from qcompile.triton_kernels.elementwise.terms import Branches, Constants, Term
from qcompile.triton_kernels.elementwise.walk import Walk, walk_over
from qcompile.triton_kernels.hadamard.spec import Spec


def compute(
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    scales: Tensor | None,
    shifts: Tensor | None,
    spec: Spec,
) -> Tensor:
    """Return the epilogue, see :func:`qcompile.triton_kernels.hadamard.op.epilogue`."""
    if not a.numel():
        return torch.empty_like(a, memory_format=torch.contiguous_format)
    walk, (a_, b_, c_) = _walk([a, b, c], scales, shifts, spec)
    assert a_ is not None
    y = walk.empty(a_)
    branches, term = Branches(a_, b_, c_), Term(spec.product, spec.gate, spec.activation)
    launch_forward(walk, branches, _constants(scales, shifts), term, y, spec.outer)
    return y


def gradients(
    grad: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    scales: Tensor | None,
    shifts: Tensor | None,
    spec: Spec,
    needs: list[bool],
) -> list[Tensor]:
    """Return the gradients of those of a, b, c, scales and shifts that are needed, in order."""
    given = (a, b, c, scales, shifts)
    if not a.numel():
        pairs = zip(given, needs, strict=True)
        return [torch.zeros_like(x) for x, needed in pairs if needed and x is not None]
    walk, (grad_, a_, b_, c_) = _walk([grad, a, b, c], scales, shifts, spec)
    assert grad_ is not None
    assert a_ is not None
    branches, term = Branches(a_, b_, c_), Term(spec.product, spec.gate, spec.activation)
    constants = _constants(scales, shifts)
    out = [walk.empty(a_) if needed else None for needed in needs[:3]]
    launch_backward(walk, grad_, branches, constants, term, out, spec.outer)
    found = [x for x in out if x is not None]
    if needs[3] or needs[4]:
        count = spec.slots(c is not None)
        dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
        of_shifts = a.new_empty((count, walk.channels), dtype=dtype)
        of_scales = torch.empty_like(of_shifts)
        stages = [(False, 0, count - spec.outer)]
        stages += [(True, count - 1, 1)] if spec.outer else []
        for of_outer, first, number in stages:
            partial = launch_sums(
                walk, grad_, branches, constants, term, has_outer=spec.outer, of_outer=of_outer
            )
            plain, projected = (x.narrow(0, first, number) for x in (of_shifts, of_scales))
            launch_finish(partial, Constants(), plain, projected, walk.count, 0)
        constants_of = zip((of_scales, of_shifts), given[3:], needs[3:], strict=True)
        found += [x.to(y.dtype) for x, y, needed in constants_of if needed and y is not None]
    return found


def _walk(
    tensors: list[Tensor | None], scales: Tensor | None, shifts: Tensor | None, spec: Spec
) -> tuple[Walk, list[Tensor | None]]:
    constant = scales is None and shifts is None
    return walk_over(tensors, None if constant else spec.channels)


def _constants(scales: Tensor | None, shifts: Tensor | None) -> Constants:
    return Constants(
        None if scales is None else scales.contiguous(),
        None if shifts is None else shifts.contiguous(),
    )
