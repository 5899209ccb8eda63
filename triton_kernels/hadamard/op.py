"""The Hadamard epilogue y = a∘b (+ c) as torch operators, with gradients of every order.

Biases are not part of it: the matrix products and convolutions before it add theirs for free.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from qcompile.ops import DOMAIN
from qcompile.triton_kernels.hadamard.reference import (
    hadamard_backward_reference,
    hadamard_reference,
)


def hadamard(a: Any, b: Any, c: Any = None) -> Any:
    """Return a∘b, or a∘b + c, of three tensors of one shape and dtype.

    Uses the fused kernel for CUDA tensors in eager mode where triton is installed. Everything
    else is plain torch: CPU tensors, fx proxies, ``torch.func`` transforms, and graphs that are
    compiled or exported, where the compiler fuses by itself and the exporter needs standard
    operators.
    """
    tensors = [t for t in (a, b, c) if t is not None]
    if _is_fusible(tensors):
        return fused_hadamard(a, b, c)
    return hadamard_reference(a, b, c)


def _is_fusible(tensors: list[Any]) -> bool:
    if not all(isinstance(t, Tensor) for t in tensors) or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():  # torch.func does not see custom gradients
        return False
    first = tensors[0]
    return (
        first.is_cuda
        and has_triton()
        and first.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        and all(t.shape == first.shape and t.dtype == first.dtype for t in tensors)
    )


@functools.cache
def has_triton() -> bool:
    """Return whether triton is installed."""
    return importlib.util.find_spec("triton") is not None


@torch.library.custom_op(f"{DOMAIN}::hadamard", mutates_args=())
def fused_hadamard(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Return a∘b (+ c); one kernel on a GPU, plain torch on a CPU."""
    a, y = _dense(a)
    if not _launchable(a):
        return y.copy_(hadamard_reference(a, b, c))
    from qcompile.triton_kernels.hadamard.kernel import launch_hadamard

    with torch.cuda.device_of(a):
        launch_hadamard(a, _as(b, a), None if c is None else _as(c, a), y)
    return y


@torch.library.custom_op(f"{DOMAIN}::hadamard_backward", mutates_args=())
def fused_hadamard_backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return grad∘b and grad∘a; one kernel on a GPU, plain torch on a CPU."""
    a, da = _dense(a)
    db = torch.empty_like(da)
    if not _launchable(a):
        for out, value in zip((da, db), hadamard_backward_reference(grad, a, b), strict=True):
            out.copy_(value)
        return da, db
    from qcompile.triton_kernels.hadamard.kernel import launch_hadamard_backward

    with torch.cuda.device_of(a):
        launch_hadamard_backward(_as(grad, a), a, _as(b, a), da, db)
    return da, db


def _launchable(x: Tensor) -> bool:
    return x.is_cuda and has_triton()


def _dense(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` without gaps or overlaps, channels-last kept, and an empty tensor like it."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    channels_last = formats.get(x.dim())
    if channels_last is not None and x.is_contiguous(memory_format=channels_last):
        return x, torch.empty_like(x, memory_format=channels_last)
    x = x.contiguous()
    return x, torch.empty_like(x, memory_format=torch.contiguous_format)


def _as(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` in the layout of ``like``, copied only if it differs."""
    if x.stride() == like.stride():
        return x
    return torch.empty_strided(like.shape, like.stride(), dtype=x.dtype, device=x.device).copy_(x)


@fused_hadamard.register_fake
def _(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    return _dense(a)[1]


@fused_hadamard_backward.register_fake
def _(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    empty = _dense(a)[1]
    return empty, torch.empty_like(empty)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, c = inputs
    ctx.save_for_backward(a, b)
    ctx.has_c = c is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    a, b = ctx.saved_tensors
    da, db = fused_hadamard_backward(grad, a, b)
    return da, db, grad if ctx.has_c else None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _double_backward(
    ctx: Any, towards_da: Tensor, towards_db: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad, a, b = ctx.saved_tensors
    return towards_da * b + towards_db * a, towards_db * grad, towards_da * grad


fused_hadamard.register_autograd(_backward, setup_context=_save)
fused_hadamard_backward.register_autograd(_double_backward, setup_context=_save_backward)
