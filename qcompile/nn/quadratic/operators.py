"""Hybrid back-propagation as operators that ``torch.compile`` does not look into.

A compiler that saw the recomputation would find the values computed before and keep those, which is
what the memory level is to avoid. In a graph a block is two calls, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompile.nn.quadratic.hybrid import backward, forward
from qcompile.nn.quadratic.plan import Plan
from qcompile.ops import DOMAIN

_PLANS: dict[str, tuple[Plan, tuple[bool, ...]]] = {}


def register_plan(plan: Plan, present: tuple[bool, ...]) -> str:
    """Remember a plan and return the text that names it in a graph.

    Args:
        plan: the plan.
        present: of the parameters, in order, which ones there are; torch loses the gradients of a
            list of which some are ``None``.
    """
    key = repr((plan, present))
    _PLANS[key] = plan, present
    return key


def _read(key: str, parameters: Sequence[Tensor]) -> tuple[Plan, list[Tensor | None]]:
    """Return the plan, and the parameters with ``None`` where there is none."""
    plan, present = _PLANS[key]
    given = iter(parameters)
    return plan, [next(given) if there else None for there in present]


def _forward(
    key: str, x: Tensor, parameters: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    """Compute the output, new running statistics, statistics, and what level 1 keeps."""
    plan, every = _read(key, parameters)
    y, updated, statistics, pre = forward(plan, x, every, kept)
    return [y, *updated, *statistics, *pre]


hybrid_forward = torch.library.custom_op(f"{DOMAIN}::hybrid_forward", _forward, mutates_args=())
hybrid_forward.register_fake(_forward)


@torch.library.custom_op(f"{DOMAIN}::hybrid_backward", mutates_args=())
def hybrid_backward(
    key: str,
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    statistics: Sequence[Tensor],
    pre: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor]:
    """Compute the gradients that are needed, laid out as what they belong to."""
    plan, every = _read(key, parameters)
    wanted = iter(needs[1:])
    all_needs = [needs[0], *(t is not None and next(wanted) for t in every)]
    found = backward(plan, grad, x, every, statistics, pre, all_needs)
    pairs = zip(found, (x, *every), strict=True)
    return [_laid_out(gradient, like) for gradient, like in pairs if gradient is not None]


def _laid_out(gradient: Tensor, like: Tensor | None) -> Tensor:
    assert like is not None
    wanted = torch.empty_like(like)
    return gradient if gradient.stride() == wanted.stride() else wanted.copy_(gradient)


@hybrid_backward.register_fake
def _(
    key: str,
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    statistics: Sequence[Tensor],
    pre: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor]:
    pairs = zip(needs, (x, *parameters), strict=True)
    return [torch.empty_like(t) for needed, t in pairs if needed]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    key, x, parameters, kept = inputs
    plan, _ = _PLANS[key]
    count = len(plan.norms)
    first = 1 + 2 * sum(norm.tracked and norm.batch for norm in plan.norms)
    ctx.key = key
    ctx.counts = len(parameters), 2 * count, len(kept)
    ctx.needs = [t.requires_grad for t in (x, *parameters)]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, *parameters, *output[first:])


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    x, *saved = ctx.saved_tensors
    first, second, third = ctx.counts
    parameters = saved[:first]
    nothing = [None] * third
    if grads[0] is None:
        return None, None, [None] * first, nothing
    found = iter(
        hybrid_backward(
            ctx.key,
            grads[0],
            x,
            parameters,
            saved[first : first + second],
            saved[first + second :],
            ctx.needs,
        )
    )
    gradients = [next(found) if needed else None for needed in ctx.needs]
    return None, gradients[0], gradients[1:], nothing


hybrid_forward.register_autograd(_backward, setup_context=_setup)
