"""Triton kernels of the Hadamard epilogue; importing this module needs triton.

One program takes ``BLOCK`` consecutive elements of tensors that share one dense layout. bf16 and
fp16 are computed in fp32 and rounded once. The upcast is a constexpr decision because Triton's
interpreter computes garbage in bf16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def hadamard_kernel(
    a_ptr, b_ptr, c_ptr, y_ptr, count, has_c: tl.constexpr, widen: tl.constexpr, block: tl.constexpr
):
    """Store a∘b, plus c if has_c."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = offsets < count
    a = tl.load(a_ptr + offsets, mask=mask)
    b = tl.load(b_ptr + offsets, mask=mask)
    if widen:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    y = a * b
    if has_c:
        c = tl.load(c_ptr + offsets, mask=mask)
        if widen:
            c = c.to(tl.float32)
        y += c
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def hadamard_backward_kernel(
    grad_ptr, a_ptr, b_ptr, da_ptr, db_ptr, count, widen: tl.constexpr, block: tl.constexpr
):
    """Store grad∘b and grad∘a in one pass over the three inputs."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = offsets < count
    grad = tl.load(grad_ptr + offsets, mask=mask)
    a = tl.load(a_ptr + offsets, mask=mask)
    b = tl.load(b_ptr + offsets, mask=mask)
    if widen:
        grad = grad.to(tl.float32)
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    tl.store(da_ptr + offsets, (grad * b).to(da_ptr.dtype.element_ty), mask=mask)
    tl.store(db_ptr + offsets, (grad * a).to(db_ptr.dtype.element_ty), mask=mask)


def _widen(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


def launch_hadamard(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None, y: torch.Tensor
) -> None:
    """Write a∘b (+ c) to ``y``; all share dtype, device and one dense layout."""
    count = y.numel()
    if count:
        hadamard_kernel[(triton.cdiv(count, BLOCK),)](
            a,
            b,
            a if c is None else c,
            y,
            count,
            has_c=c is not None,
            widen=_widen(y.dtype),
            block=BLOCK,
            num_warps=NUM_WARPS,
        )


def launch_hadamard_backward(
    grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor, da: torch.Tensor, db: torch.Tensor
) -> None:
    """Write grad∘b to ``da`` and grad∘a to ``db``; all share dtype, device and one dense layout."""
    count = grad.numel()
    if count:
        hadamard_backward_kernel[(triton.cdiv(count, BLOCK),)](
            grad, a, b, da, db, count, widen=_widen(grad.dtype), block=BLOCK, num_warps=NUM_WARPS
        )
