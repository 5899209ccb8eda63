"""The Hadamard epilogue in plain torch: the definition that the kernels are tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcompile.triton_kernels.elementwise.activations import ACTIVATE, ACTIVATE_BACKWARD
from qcompile.triton_kernels.hadamard.spec import Spec


def hadamard_reference(a: Any, b: Any, c: Any = None) -> Any:
    """Return a∘b, or a∘b + c. All of one shape and dtype; fx proxies work too."""
    product = a * b
    return product if c is None else product + c


def hadamard_backward_reference(grad: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Return the gradients of a and b; the gradient of c is ``grad`` itself."""
    return grad * b, grad * a


def epilogue_reference(a: Any, b: Any, c: Any, scales: Any, shifts: Any, spec: Spec) -> Any:
    """Return act(gate(a)∘b + c), or what else ``spec`` says, in the type of ``a``.

    Args:
        a: [..., C, ...], of which ``spec.channels`` is the dimension of channels.
        b: likewise, or ``None``.
        c: likewise, or ``None``.
        scales: [slots, C] or ``None``: what a, b, c (those that there are) and, with
            ``spec.outer``, their combination are multiplied by.
        shifts: likewise, what is then added to them.
        spec: what to compute.
    """
    values = [x for x in (a, b, c) if x is not None]
    values = [_affine(x, scales, shifts, slot, spec) for slot, x in enumerate(values)]
    y = _combine(values, c is not None, spec)
    if spec.outer:
        y = _affine(y, scales, shifts, len(values), spec)
    return ACTIVATE[spec.activation](y).to(a.dtype)


def epilogue_backward_reference(
    grad: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    scales: Tensor | None,
    shifts: Tensor | None,
    spec: Spec,
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Return the gradients of the branches that there are, of scales and of shifts.

    Arguments are those of :func:`epilogue_reference`, after the gradient of its result.
    """
    given = [x for x in (a, b, c) if x is not None]
    values = [_affine(x, scales, shifts, slot, spec) for slot, x in enumerate(given)]
    taken = [*given]
    y = _combine(values, c is not None, spec)
    z = y
    if spec.outer:
        taken.append(y)
        z = _affine(y, scales, shifts, len(given), spec)
    delta = ACTIVATE_BACKWARD[spec.activation](grad.to(z.dtype), z)
    towards = [delta] if spec.outer else []
    if spec.outer:
        delta = _scaled(delta, scales, len(given), spec)
    found = _towards(delta, values, c is not None, spec)
    towards = found + towards
    gradients = [
        _scaled(g, scales, slot, spec).to(x.dtype)
        for slot, (g, x) in enumerate(zip(found, given, strict=True))
    ]
    over = [dim for dim in range(a.dim()) if dim != spec.channels % max(1, a.dim())]
    of_scales = of_shifts = None
    if scales is not None:
        sums = [_sum(g * x, over) for g, x in zip(towards, taken, strict=True)]
        of_scales = _stacked(sums, scales)
    if shifts is not None:
        of_shifts = _stacked([_sum(g, over) for g in towards], shifts)
    return gradients, of_scales, of_shifts


def _combine(values: list[Any], has_c: bool, spec: Spec) -> Any:
    y = values[0]
    if spec.product == "pair":
        y = ACTIVATE[spec.gate](y) * values[1]
    elif spec.product == "square":
        y = y * y
    return y + values[-1] if has_c else y


def _towards(delta: Tensor, values: list[Tensor], has_c: bool, spec: Spec) -> list[Tensor]:
    """Return the gradients of the branches' scaled values."""
    a = values[0]
    if spec.product == "pair":
        found = [
            ACTIVATE_BACKWARD[spec.gate](delta * values[1], a),
            delta * ACTIVATE[spec.gate](a),
        ]
    else:
        found = [2 * delta * a if spec.product == "square" else delta]
    return [*found, delta] if has_c else found


def _affine(x: Any, scales: Any, shifts: Any, slot: int, spec: Spec) -> Any:
    x = _scaled(x, scales, slot, spec)
    return x if shifts is None else x + _row(shifts, slot, x, spec)


def _scaled(x: Any, scales: Any, slot: int, spec: Spec) -> Any:
    return x if scales is None else x * _row(scales, slot, x, spec)


def _row(constants: Any, slot: int, x: Any, spec: Spec) -> Any:
    shape = [1] * x.dim()
    shape[spec.channels] = -1
    return constants[slot].view(shape)


def _sum(x: Tensor, over: list[int]) -> Tensor:
    return x.sum(over) if over else x


def _stacked(rows: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(rows).to(like.dtype)
