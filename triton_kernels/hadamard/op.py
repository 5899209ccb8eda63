"""The Hadamard epilogue as torch operators, with gradients of every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcompile.ops import DOMAIN
from qcompile.triton_kernels.availability import has_triton
from qcompile.triton_kernels.elementwise.promotion import promote_under_autocast, widest
from qcompile.triton_kernels.hadamard.reference import (
    epilogue_backward_reference,
    epilogue_reference,
    hadamard_reference,
)
from qcompile.triton_kernels.hadamard.spec import DTYPES, Spec, check
from qcompile.triton_kernels.registration import kernel_op

Constants = Tensor | None


def hadamard(a: Any, b: Any, c: Any = None) -> Any:
    """Return a∘b, or a∘b + c, of three tensors of one shape and dtype.

    Uses the fused kernel for CUDA tensors in eager mode where triton is installed. Everything
    else is plain torch: CPU tensors, fx proxies, ``torch.func`` transforms, and graphs that are
    compiled or exported, where inductor fuses by itself, also with what is before and behind,
    and the exporter needs standard operators.
    """
    tensors = [t for t in (a, b, c) if t is not None]
    if not is_fusible(tensors):
        return hadamard_reference(a, b, c)
    return fused_epilogue(a, None if b is a else b, c, product="square" if b is a else "pair")


def epilogue(
    a: Any,
    b: Any = None,
    c: Any = None,
    *,
    scales: Any = None,
    shifts: Any = None,
    product: str = "pair",
    gate: str = "none",
    activation: str = "none",
    channels: int = -1,
    outer: bool = False,
) -> Any:
    """Return act(gate(a)∘b + c), each of a, b, c scaled and shifted by channel before.

    One pass over memory for CUDA tensors in eager mode, plain torch as :func:`hadamard`
    otherwise. Half precision is computed in float32 and rounded once in the kernel.

    Args:
        a: of any shape and strides; slices of columns or channels are read where they lie.
        b: of the same shape, type and device; the second factor of a pair, else ``None``.
        c: likewise, added; or ``None``.
        scales: [slots, C], by which the branches that there are, in order, are multiplied: with
            ``shifts`` a folded batch norm; or ``None``.
        shifts: [slots, C], what is then added to them: biases; or ``None``.
        product: ``pair`` (gate(a)∘b), ``square`` (a∘a, as T3) or ``none`` (a, as T2).
        gate: activation of a: ``none``, ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, ``sigmoid``
            or ``tanh``.
        activation: of the end; same names.
        channels: dimension of the C channels: -1 of linear layers, 1 of convolutions.
        outer: whether scales and shifts have one more row, for the combination: a batch norm
            behind it.

    Returns:
        Of the shape and type of ``a``.

    Raises:
        ConfigurationError: a name is unknown.
        DataError: shapes, types or devices do not fit; under autocast types may differ, and the
            widest is computed in, as by torch's own ``addcmul``.
    """
    tensors = [t for t in (a, b, c, scales, shifts) if t is not None]
    if all(isinstance(t, Tensor) for t in tensors) and torch.is_autocast_enabled(a.device.type):
        a, b, c = widest(a, b, c)
    spec = Spec(product, gate, activation, channels, outer)
    if all(isinstance(t, Tensor) for t in tensors):
        check(a, b, c, scales, shifts, spec)
    values = [t for t in (a, b, c) if t is not None]
    if not is_fusible(values):
        return epilogue_reference(a, b, c, scales, shifts, spec)
    return fused_epilogue(a, b, c, scales, shifts, product, gate, activation, channels, outer)


def fused_hadamard_backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return grad∘b and grad∘a: one kernel on a GPU, plain torch on a CPU."""
    needs = [True, True, False, False, False]
    first, second = fused_epilogue_backward(
        grad, a, b, None, None, None, "pair", "none", "none", -1, False, needs
    )
    return first, second


def is_fusible(tensors: list[Any]) -> bool:
    """Return whether kernels can compute with tensors, all of one shape and type."""
    if not all(isinstance(t, Tensor) for t in tensors) or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():  # torch.func does not see custom gradients
        return False
    first = tensors[0]
    return (
        first.is_cuda
        and has_triton()
        and first.dtype in DTYPES
        and all(t.shape == first.shape and t.dtype == first.dtype for t in tensors)
    )


@kernel_op(f"{DOMAIN}::epilogue")
def fused_epilogue(
    a: Tensor,
    b: Tensor | None = None,
    c: Tensor | None = None,
    scales: Tensor | None = None,
    shifts: Tensor | None = None,
    product: str = "pair",
    gate: str = "none",
    activation: str = "none",
    channels: int = -1,
    outer: bool = False,
) -> Tensor:
    """Compute what :func:`epilogue` does: one kernel on a GPU, plain torch on a CPU."""
    spec = Spec(product, gate, activation, channels, outer)
    check(a, b, c, scales, shifts, spec)
    if not a.is_cuda or not has_triton():
        y = epilogue_reference(a, b, c, scales, shifts, spec)
        return y.clone() if y is a else y
    from qcompile.triton_kernels.hadamard.gpu import compute

    return compute(a, b, c, scales, shifts, spec)


@kernel_op(f"{DOMAIN}::epilogue_backward")
def fused_epilogue_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    scales: Tensor | None,
    shifts: Tensor | None,
    product: str,
    gate: str,
    activation: str,
    channels: int,
    outer: bool,
    needs: list[bool],
) -> list[Tensor]:
    """Return the gradients of those of a, b, c, scales and shifts that are needed, in order."""
    spec = Spec(product, gate, activation, channels, outer)
    check(a, b, c, scales, shifts, spec)
    tensors = (a, b, c, scales, shifts)
    if not a.is_cuda or not has_triton():
        found = _by_reference(grad, tensors, spec)
        pairs = zip(found, needs, strict=True)
        wanted = [x for x, needed in pairs if needed and x is not None]
        return [
            x.clone() if any(x is y for y in (grad, *wanted[:i])) else x
            for i, x in enumerate(wanted)
        ]
    from qcompile.triton_kernels.hadamard.gpu import gradients

    return gradients(grad, *tensors, spec, needs)


def _by_reference(grad: Tensor, tensors: tuple[Any, ...], spec: Spec) -> list[Tensor | None]:
    """Return the gradients of a, b, c, scales and shifts by plain torch."""
    a, b, c, scales, shifts = tensors
    branches, of_scales, of_shifts = epilogue_backward_reference(
        grad, a, b, c, scales, shifts, spec
    )
    rest = iter(branches)
    return [*(None if x is None else next(rest) for x in (a, b, c)), of_scales, of_shifts]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors, spec = ctx.saved_tensors, Spec(*ctx.options)
    # Arguments that have their default values may be missing.
    needs = [*ctx.needs_input_grad, *[False] * 5][:5]
    if torch.is_grad_enabled():
        found = _recorded(grad, tensors, spec, needs)
    else:
        # Without activation and constants c's gradient is the given one itself.
        same = needs[2] and spec.activation == "none" and tensors[3] is None and not spec.outer
        wanted = [*needs[:2], needs[2] and not same, *needs[3:]]
        fresh = iter(fused_epilogue_backward(grad, *tensors, *ctx.options, wanted))
        found = [next(fresh) if needed else None for needed in wanted]
        found[2] = grad if same else found[2]
    return (*found, *[None] * len(ctx.options))


def _recorded(
    grad: Tensor, tensors: tuple[Any, ...], spec: Spec, needs: list[bool]
) -> list[Tensor | None]:
    """Return gradients that can be differentiated again: those of plain torch, recomputed."""
    a, b, c, scales, shifts = tensors
    y = epilogue_reference(a, b, c, scales, shifts, spec)
    wanted = [x for x, needed in zip(tensors, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if needed else None for needed in needs]


fused_epilogue.register_autograd(_backward, setup_context=_save)
promote_under_autocast("epilogue", 3)
