"""Quadratic linear layers as torch operators, with gradients of every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qcompile.ops import DOMAIN
from qcompile.triton_kernels.hadamard.op import has_triton
from qcompile.triton_kernels.quadratic_linear.checks import check_tensors
from qcompile.triton_kernels.quadratic_linear.forms import checked_form
from qcompile.triton_kernels.quadratic_linear.reference import (
    branch_values,
    by_letter,
    combine_backward,
    products_backward,
    quadratic_linear_reference,
)

_NAMES = ("x", "weight_a", "weight_b", "weight_c", "bias_a", "bias_b", "bias_c")


def quadratic_linear(
    x: Any,
    weight_a: Any,
    weight_b: Any = None,
    weight_c: Any = None,
    bias_a: Any = None,
    bias_b: Any = None,
    bias_c: Any = None,
    *,
    form: str = "T4",
    gate: str = "none",
    activation: str = "none",
) -> Any:
    """Compute a quadratic linear layer: act(gate(x W_aᵀ + b_a) ∘ (x W_bᵀ + b_b) + c).

    ======  =============================================
    form    what is activated
    ======  =============================================
    T2      a, of x∘x
    T3      a ∘ a
    T4      gate(a) ∘ b
    T2_4    gate(a) ∘ b + c, where c is of x∘x
    Quadra  gate(a) ∘ b + c
    ======  =============================================

    With ``gate="silu"`` T4 is SwiGLU, with ``gelu`` GEGLU, with ``relu`` ReGLU (Shazeer, "GLU
    variants improve transformer", 2020); with none it is the bilinear GLU.

    Plain torch computes CPU tensors, float64, and whatever has triton neither installed nor at
    hand: ``torch.func`` transforms, ``torch.jit.trace``, exports to ONNX, DTensors.

    Args:
        x: [..., K], float32, float16, bfloat16 or float64.
        weight_a: [N, K], as ``torch.nn.Linear`` holds it; any strides.
        weight_b: likewise, for the forms that have it.
        weight_c: likewise.
        bias_a: [N] or ``None``.
        bias_b: likewise.
        bias_c: likewise.
        form: name of the form.
        gate: activation of the first factor: ``none``, ``relu``, ``gelu``, ``gelu_tanh``,
            ``silu``, ``sigmoid`` or ``tanh``.
        activation: of the output; same names.

    Returns:
        [..., N] in the type of ``x``, or in autocast's.

    Raises:
        ConfigurationError: a name is unknown, the form has xᵀWx, or a gate has no factor to act on.
        DataError: shapes, types or devices do not fit.
    """
    tensors = (x, weight_a, weight_b, weight_c, bias_a, bias_b, bias_c)
    if has_torch_function(tensors):  # fx proxies among others, which make this call a node
        return handle_torch_function(
            quadratic_linear, tensors, *tensors, form=form, gate=gate, activation=activation
        )
    form = checked_form(form, gate, activation)
    check_tensors(x, tensors[1:4], tensors[4:], form)
    if not _is_fusible(tensors):
        weights, biases = by_letter(form, *tensors[1:4]), by_letter(form, *tensors[4:])
        return quadratic_linear_reference(x, weights, biases, form, gate, activation)
    return fused_quadratic_linear(*tensors, form, gate, activation)


def _is_fusible(tensors: tuple[Any, ...]) -> bool:
    x = tensors[0]
    return (
        x.is_cuda
        and has_triton()
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and not torch.jit.is_tracing()
        and not torch.onnx.is_in_onnx_export()
        and not torch._C._are_functorch_transforms_active()
        and not any(is_traceable_wrapper_subclass(t) for t in tensors if t is not None)
    )


def _rows(x: Tensor) -> Tensor:
    """Return [..., K] as [M, K], a view where there is one."""
    return x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)


@torch.library.triton_op(f"{DOMAIN}::quadratic_linear", mutates_args=())
def fused_quadratic_linear(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor | None,
    weight_c: Tensor | None,
    bias_a: Tensor | None,
    bias_b: Tensor | None,
    bias_c: Tensor | None,
    form: str,
    gate: str,
    activation: str,
) -> Tensor:
    """Compute the layer without recording; arguments as :func:`quadratic_linear`, checked."""
    weights = by_letter(form, weight_a, weight_b, weight_c)
    biases = by_letter(form, bias_a, bias_b, bias_c)
    rows = _rows(x)
    y = quadratic_linear_reference(rows, weights, biases, form, gate, activation)
    return y.reshape(*x.shape[:-1], weight_a.shape[0])


@torch.library.triton_op(f"{DOMAIN}::quadratic_linear_backward", mutates_args=())
def fused_quadratic_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor | None,
    weight_c: Tensor | None,
    bias_a: Tensor | None,
    bias_b: Tensor | None,
    bias_c: Tensor | None,
    form: str,
    gate: str,
    activation: str,
    needs: list[bool],
) -> list[Tensor]:
    """Return the gradients of those of x, weights and biases, in this order, that are needed."""
    weights = by_letter(form, weight_a, weight_b, weight_c)
    biases = by_letter(form, bias_a, bias_b, bias_c)
    wanted = [name for name, needed in zip(_NAMES, needs, strict=True) if needed]
    rows = _rows(x)
    values = branch_values(rows, weights, biases, form)
    found = combine_backward(_rows(grad), values, form, gate, activation)
    gradients = products_backward(found, rows, weights, form, frozenset(wanted))
    return [
        gradients[name].reshape(x.shape if name == "x" else gradients[name].shape)
        for name in wanted
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.form, ctx.gate, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[: len(_NAMES)])
    options = (ctx.form, ctx.gate, ctx.activation)
    if torch.is_grad_enabled():
        gradients = _recorded(grad, tensors, options, needs)
    else:
        gradients = fused_quadratic_linear_backward(grad, *tensors, *options, needs)
    found = iter(gradients)
    return (*(next(found) if needed else None for needed in needs), None, None, None)


def _recorded(
    grad: Tensor, tensors: tuple[Any, ...], options: tuple[str, str, str], needs: list[bool]
) -> tuple[Tensor, ...]:
    """Return gradients that can be differentiated again: those of plain torch, recomputed."""
    form = options[0]
    weights, biases = by_letter(form, *tensors[1:4]), by_letter(form, *tensors[4:])
    y = quadratic_linear_reference(tensors[0], weights, biases, *options)
    wanted = [tensor for tensor, needed in zip(tensors, needs, strict=True) if needed]
    return torch.autograd.grad(y, wanted, grad, create_graph=True)


fused_quadratic_linear.register_autograd(_backward, setup_context=_save)


def _register_autocast(key: str, device: str) -> None:
    """Let the operator compute in the type that autocast has for a device, as torch's own do."""
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(x: Any, dtype: torch.dtype) -> Any:
        eligible = isinstance(x, Tensor) and x.device.type == device and x.dtype != torch.float64
        return x.to(dtype) if eligible else x

    def lowered(*arguments: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return operator(*(cast(x, dtype) for x in arguments))

    operator = getattr(torch.ops, DOMAIN).quadratic_linear.default
    _LIBRARY.impl("quadratic_linear", lowered, key)


_LIBRARY = torch.library.Library(DOMAIN, "FRAGMENT")
_register_autocast("AutocastCUDA", "cuda")
_register_autocast("AutocastCPU", "cpu")
