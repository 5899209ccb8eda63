"""Normalised blocks as torch operators, with gradients of every order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompile.ops import DOMAIN
from qcompile.triton_kernels.availability import has_triton
from qcompile.triton_kernels.batch_norm_block.reference import (
    block_backward_reference,
    block_reference,
    running_reference,
)
from qcompile.triton_kernels.batch_norm_block.spec import Spec, check
from qcompile.triton_kernels.elementwise.promotion import promote_lists_under_autocast
from qcompile.triton_kernels.registration import kernel_op


def batch_norm_block(
    values: Sequence[Tensor],
    weights: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    running: Sequence[Tensor] = (),
    *,
    product: str = "pair",
    norms: str = "branch",
    activation: str = "none",
    channels: int = 1,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return act(BN(BN_a(a)∘BN_b(b) + BN_c(c))), where batch norms use the batch's statistics.

    Keeps nothing but the values and the statistics for the backward pass, which recomputes the
    rest. On a GPU with triton the forward pass reads each value twice and the output once, the
    backward pass all of them three times; elsewhere it is plain torch.

    Args:
        values: a, b and c, as far as there are, [batch, C, ...]; of one shape, type and device.
        weights: of each batch norm, those of the branches first, [C]; or none.
        biases: likewise.
        running: running mean and variance of each batch norm, which are updated; or none.
        product: ``pair`` (a∘b), ``square`` (a∘a) or ``none`` (a); one more value is added.
        norms: where batch norms are: ``branch``, ``outer`` or ``both``.
        activation: of the end: ``none``, ``relu``, ``gelu``, ``gelu_tanh``, ``silu``,
            ``sigmoid`` or ``tanh``.
        channels: dimension of the C channels.
        momentum: weight of this batch in the running statistics.
        eps: added to the variances.

    Returns:
        Of the shape and type of the values.

    Raises:
        ConfigurationError: a name is unknown.
        DataError: tensors do not fit each other.
    """
    options = (product, norms, activation, channels, momentum, eps)
    y, *rest = fused_batch_norm_block(
        list(values), list(weights), list(biases), list(running), *options
    )
    with torch.no_grad():
        for old, new in zip(running, rest[len(rest) - len(running) :], strict=True):
            old.copy_(new)
    return y


@kernel_op(f"{DOMAIN}::batch_norm_block")
def fused_batch_norm_block(
    values: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    running: list[Tensor],
    product: str,
    norms: str,
    activation: str,
    channels: int,
    momentum: float,
    eps: float,
) -> list[Tensor]:
    """Return output, mean and scale of each batch norm, new running means and variances."""
    spec = Spec(product, norms, activation, channels, momentum, eps)
    check(values, weights, biases, running, spec)
    if not values[0].is_cuda or not has_triton():
        y, statistics = block_reference(values, weights, biases, spec)
        return [y, *statistics, *running_reference(values, statistics, running, spec)]
    from qcompile.triton_kernels.batch_norm_block.gpu import compute

    return compute(values, weights, biases, running, spec)


@kernel_op(f"{DOMAIN}::batch_norm_block_backward")
def fused_batch_norm_block_backward(
    grad: Tensor,
    values: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    statistics: list[Tensor],
    product: str,
    norms: str,
    activation: str,
    channels: int,
    eps: float,
) -> list[Tensor]:
    """Return the gradients of values, weights and biases."""
    spec = Spec(product, norms, activation, channels, eps=eps)
    if not values[0].is_cuda or not has_triton():
        found = block_backward_reference(grad, values, weights, biases, statistics, spec)
    else:
        from qcompile.triton_kernels.batch_norm_block.gpu import gradients

        found = gradients(grad, values, weights, biases, statistics, spec)
    of_values, of_weights, of_biases = found
    return [
        *(
            x.clone() if any(x is y for y in of_values[:i]) or x is grad else x
            for i, x in enumerate(of_values)
        ),
        *(g.to(w.dtype) for g, w in zip(of_weights, weights, strict=False)),
        *(g.to(b.dtype) for g, b in zip(of_biases, biases, strict=False)),
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    values, weights, biases, running, product, norms, activation, channels, _, eps = inputs
    ctx.options = (product, norms, activation, channels, eps)
    ctx.counts = (len(values), len(weights), len(biases), len(running))
    statistics = output[1 : 1 + 2 * Spec(product, norms).count(len(values))]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*values, *weights, *biases, *statistics)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    first, second, third, fourth = ctx.counts
    saved = list(ctx.saved_tensors)
    groups = [saved[:first], saved[first : first + second]]
    groups += [saved[first + second : first + second + third]]
    statistics = saved[first + second + third :]
    grad = grads[0]
    if grad is None:
        found: list[Any] = [None] * (first + second + third)
    elif torch.is_grad_enabled():
        found = _recorded(grad, groups, ctx.options)
    else:
        found = fused_batch_norm_block_backward(grad, *groups, statistics, *ctx.options)
    of_weights, of_biases = found[first : first + second], found[first + second :]
    return found[:first], of_weights, of_biases, [None] * fourth, *[None] * 6


def _recorded(grad: Tensor, groups: list[list[Tensor]], options: tuple[Any, ...]) -> list[Any]:
    """Return gradients that can be differentiated again: those of plain torch, recomputed."""
    product, norms, activation, channels, eps = options
    spec = Spec(product, norms, activation, channels, eps=eps)
    values, weights, biases = groups
    y, _ = block_reference(values, weights, biases, spec)
    every = [x for group in groups for x in group]
    wanted = [x for x in every if x.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if x.requires_grad else None for x in every]


fused_batch_norm_block.register_autograd(_backward, setup_context=_save)
promote_lists_under_autocast("batch_norm_block")
