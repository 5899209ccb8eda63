"""Quadratic linear layers as torch operators, with gradients of every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from qcompile.ops import DOMAIN
from qcompile.triton_kernels.availability import has_triton
from qcompile.triton_kernels.dispatch import can_measure, dispatcher
from qcompile.triton_kernels.hadamard.op import hadamard
from qcompile.triton_kernels.quadratic_linear.call import FUSED_DEPTH, QuadraticLinearCall
from qcompile.triton_kernels.quadratic_linear.checks import check_tensors
from qcompile.triton_kernels.quadratic_linear.forms import checked_form
from qcompile.triton_kernels.quadratic_linear.problem import Kept, Problem
from qcompile.triton_kernels.quadratic_linear.reference import (
    branch_values,
    by_letter,
    combine,
    quadratic_linear_reference,
)
from qcompile.triton_kernels.quadratic_linear.strategies import Strategy, backward, forward
from qcompile.triton_kernels.registration import FUSIBLE, fusible, kernel_op

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
    tensors: tuple[Any, ...] = (x, weight_a, weight_b, weight_c, bias_a, bias_b, bias_c)
    if has_torch_function(tensors):  # fx proxies among others, which make this call a node
        return handle_torch_function(
            quadratic_linear, tensors, *tensors, form=form, gate=gate, activation=activation
        )
    form = checked_form(form, gate, activation)
    check_tensors(x, tensors[1:4], tensors[4:], form)
    weights, biases = by_letter(form, *tensors[1:4]), by_letter(form, *tensors[4:])
    options = (form, gate, activation)
    if fusible(*(t for t in tensors if t is not None)):
        rows = _rows(x)
        training = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in tensors
        )
        lowered = _lowered(x.device.type)
        strategy = _strategy(Problem(rows, weights, biases, *options, lowered), training)
        if strategy != "plain":
            y = fused_quadratic_linear(rows, *tensors[1:], *options, strategy, training)[0]
            return y.view(*x.shape[:-1], y.shape[-1])
    return combine(branch_values(x, weights, biases, form), *options, hadamard)


def _strategy(problem: Problem, training: bool) -> str:
    """Choose; in a graph that is compiled by type and depth, as a compiler cannot see the rest.

    Plain torch is what a compiler fuses well itself where products are bound by arithmetic.
    """
    if torch.compiler.is_compiling():
        half = problem.dtype != torch.float32
        return "auto" if half and problem.x.shape[1] <= FUSED_DEPTH else "plain"
    if problem.is_empty:
        return "plain"
    with torch.no_grad():
        call = QuadraticLinearCall(problem, training)
        return dispatcher().choose(call, can_measure(problem.x))


def _lowered(device: str) -> torch.dtype | None:
    """Return the type that autocast computes in, or ``None`` if it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _rows(x: Tensor) -> Tensor:
    """Return [..., K] as [M, K], a view where there is one."""
    return x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)


def _problem(
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
) -> Problem:
    weights = by_letter(form, weight_a, weight_b, weight_c)
    biases = by_letter(form, bias_a, bias_b, bias_c)
    return Problem(_rows(x), weights, biases, form, gate, activation)


def _parsed(name: str, problem: Problem, training: bool) -> Strategy:
    """Read the name of a strategy, chosen here for ``auto``; there may be no other than plain."""
    x = problem.x
    if not (x.is_cuda and has_triton() and x.dtype in FUSIBLE):
        return Strategy("plain")
    if name == "auto":
        name = dispatcher().choose(QuadraticLinearCall(problem, training), measure=False)
        # Plain torch would compute the products again in the backward pass.
        name = "apart" if name == "plain" else name
    return Strategy.parse(name)


@kernel_op(f"{DOMAIN}::quadratic_linear")
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
    strategy: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the layer; arguments as :func:`quadratic_linear`, checked.

    Args:
        x: [..., K].
        weight_a: [N, K].
        weight_b: likewise, or ``None``.
        weight_c: likewise, or ``None``.
        bias_a: [N] or ``None``.
        bias_b: likewise.
        bias_c: likewise.
        form: canonical name.
        gate: name of the gate.
        activation: name of the activation.
        strategy: see :mod:`qcompile.triton_kernels.quadratic_linear.strategies`, or ``auto``.
        keep: whether a backward pass follows.

    Returns:
        The output [..., N], and what the strategy keeps for its backward pass.
    """
    problem = _problem(
        x, weight_a, weight_b, weight_c, bias_a, bias_b, bias_c, form, gate, activation
    )
    y, kept = forward(problem, _parsed(strategy, problem, keep), keep)
    factors, added = (
        x.new_empty(0) if tensor is None else tensor for tensor in (kept.factors, kept.added)
    )
    return y.view(*x.shape[:-1], y.shape[-1]), factors, added


@kernel_op(f"{DOMAIN}::quadratic_linear_backward")
def fused_quadratic_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor | None,
    weight_c: Tensor | None,
    bias_a: Tensor | None,
    bias_b: Tensor | None,
    bias_c: Tensor | None,
    factors: Tensor,
    added: Tensor,
    form: str,
    gate: str,
    activation: str,
    strategy: str,
    needs: list[bool],
) -> list[Tensor]:
    """Return the gradients of those of x, weights and biases, in this order, that are needed."""
    problem = _problem(
        x, weight_a, weight_b, weight_c, bias_a, bias_b, bias_c, form, gate, activation
    )
    wanted = [name for name, needed in zip(_NAMES, needs, strict=True) if needed]
    chosen = _parsed(strategy, problem, training=True)
    kept = Kept(*(tensor if tensor.dim() == 2 else None for tensor in (factors, added)))
    found = backward(problem, _rows(grad), kept, chosen, frozenset(wanted))
    return [found[name].view(x.shape) if name == "x" else found[name] for name in wanted]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.options = inputs[len(_NAMES) : -2]
    ctx.strategy = inputs[-2]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: len(_NAMES)], *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *tensors, factors, added = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[: len(_NAMES)])
    gradients: Any = ()
    if grad is None:
        needs = [False] * len(_NAMES)
    elif torch.is_grad_enabled():
        gradients = _recorded(grad, tensors, ctx.options, needs)
    else:
        gradients = fused_quadratic_linear_backward(
            grad, *tensors, factors, added, *ctx.options, ctx.strategy, needs
        )
    found = iter(gradients)
    return (*(next(found) if needed else None for needed in needs), *[None] * 5)


def _recorded(
    grad: Tensor, tensors: list[Any], options: tuple[str, str, str], needs: list[bool]
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
