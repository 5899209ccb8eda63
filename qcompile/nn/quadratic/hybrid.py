"""Hybrid back-propagation: training that keeps less than autograd would, and recomputes the rest.

=====  ================================================  =======================================
level  kept for the backward pass                        recomputed
=====  ================================================  =======================================
0      what autograd keeps                               nothing
1      the input and what the branches compute           batch norms, products, activation
3      the input and the batch norms' mean and scale     those, and what the branches compute
=====  ================================================  =======================================

A branch that no gradient asks for is neither kept nor recomputed: C of a Quadra without batch norm
and activation, say. xᵀWx is recomputed within its own gradient at both levels. The backward pass
goes branch by branch and at level 3 writes gradients over recomputed values. Batch norms are called
once a step, so running statistics are those of level 0, bit for bit; where kernels compute them, on
a GPU, up to rounding.

Convolutions of 3×3 that are recomputed, and their gradients, are computed by Winograd's method
where :mod:`qcompile.nn.quadratic.winograd` knows them.

Sources: QuadraLib (Xu et al., MLSys 2022, section 4.3) for the idea; gradients as in
``docs/quadratic.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

from qcompile.nn.quadratic import fused
from qcompile.nn.quadratic.branches import (
    Pairs,
    branch_gradients,
    by_winograd,
    compute_again,
    compute_branch,
    winograd_gradients,
)
from qcompile.nn.quadratic.elementwise import ElementwiseBackward, Norm
from qcompile.nn.quadratic.fused import FusedBackward
from qcompile.nn.quadratic.plan import OUTER, NormPlan, Plan
from qcompile.nn.quadratic.products import unpad


def compute(plan: Plan, x: Tensor, parameters: Sequence[Any], kept: Sequence[Tensor]) -> Any:
    """Compute a block, keeping for the backward pass what ``plan.memory`` says.

    Args:
        plan: what to compute.
        x: [batch, n], or [batch, C, *spatial].
        parameters: weight and bias, or ``None``, of each branch and then of each batch norm.
        kept: running mean and variance of each batch norm that tracks them.

    Returns:
        The output, [batch, N] or [batch, N, *positions], then new running statistics.
    """
    return _Hybrid.apply(plan, x, *parameters, *kept)


def flat(plan: Plan, products: Pairs, scales: Pairs) -> list[Any]:
    """List weights and biases, of the branches and then of the batch norms."""
    pairs = [products[x] for x in plan.letters] + [scales[norm.slot] for norm in plan.norms]
    return [tensor for pair in pairs for tensor in pair]


def _named(plan: Plan, flat: Sequence[Any]) -> tuple[Pairs, Pairs]:
    """Undo :func:`flat`."""
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    count = len(plan.letters)
    slots = [norm.slot for norm in plan.norms]
    return dict(zip(plan.letters, pairs[:count], strict=True)), dict(
        zip(slots, pairs[count:], strict=True)
    )


@contextmanager
def _without_autocast(x: Tensor) -> Iterator[None]:
    with torch.autocast(x.device.type, enabled=False):
        yield


def _pad(plan: Plan, x: Tensor) -> Tensor:
    padded: Tensor = x if plan.geometry is None else plan.geometry.pad_by_mode(x)
    return padded


def forward(
    plan: Plan, x: Tensor, parameters: Sequence[Any], kept: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Compute without recording.

    Returns:
        The output; new running statistics; mean and scale of each batch norm; what the branches
        computed, as far as level 1 keeps it.
    """
    products, scales = _named(plan, parameters)
    running = iter(kept)
    updated: list[Tensor] = []
    statistics: list[Tensor] = []
    pre: list[Tensor] = []
    slots = {norm.slot: norm for norm in plan.norms}
    stored = {norm.slot: (next(running), next(running)) for norm in plan.norms if norm.tracked}
    moments: dict[str, list[Tensor]] = {}

    def normalise(slot: str, value: Tensor) -> Tensor:
        norm = slots[slot]
        y, moments[slot], new = _normalise(norm, value, scales[slot], stored.get(slot))
        updated.extend(new)
        return y

    with _without_autocast(x):
        padded = _pad(plan, x)
        values = {x: compute_branch(plan, x, padded, products[x]) for x in plan.letters}
        if fused.takes(plan, x, values):
            return _fused_forward(plan, values, scales, stored)
        if plan.memory == 1:
            pre = [values[letter] for letter in plan.needed]
        for letter in plan.letters:
            if letter in slots:
                values[letter] = normalise(letter, values[letter])
        y = plan.formula.combine(values)
        values.clear()
        if OUTER in slots:
            y = normalise(OUTER, y)
        y = plan.end(y)
    statistics = [tensor for norm in plan.norms for tensor in moments[norm.slot]]
    return y, updated, statistics, pre


def _fused_forward(
    plan: Plan, values: dict[str, Tensor], scales: Pairs, running: dict[str, tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Finish :func:`forward` by kernels."""
    for norm in plan.norms:
        if norm.batch:
            F._verify_batch_size(values[plan.letters[0]].shape)  # type: ignore[attr-defined]
    y, updated, statistics = fused.combine(plan, values, scales, running)
    pre = [values[letter] for letter in plan.needed] if plan.memory == 1 else []
    values.clear()
    return y, updated, statistics, pre


def _normalise(
    norm: NormPlan, value: Tensor, scale: tuple[Any, Any], running: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Apply a batch norm: its output, mean and scale, new running statistics."""
    weight, bias = scale
    if not norm.batch:
        assert running is not None
        mean, variance = running
        y = F.batch_norm(value, mean, variance, weight, bias, False, norm.momentum, norm.eps)
        return y, [mean.clone(), (variance + norm.eps).rsqrt()], []
    F._verify_batch_size(value.shape)  # type: ignore[attr-defined]
    new = [] if running is None else [tensor.clone() for tensor in running]
    # What F.batch_norm calls, which however hides the statistics.
    first, second = new or (None, None)
    y, mean, rstd, *_ = torch._batch_norm_impl_index(
        value, weight, bias, first, second, True, norm.momentum, norm.eps, True
    )
    return y, [mean, rstd], new


def backward(
    plan: Plan,
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Any],
    statistics: Sequence[Tensor],
    pre: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of x and the parameters, ``None`` where not needed.

    Args:
        plan: what was computed.
        grad: of the output.
        x: the input.
        parameters: as :func:`forward` took them.
        statistics: as :func:`forward` returned them.
        pre: likewise; empty at level 3.
        needs: of x and of each parameter.
    """
    products, scales = _named(plan, parameters)
    needed_products, needed_scales = _named(plan, needs[1:])
    moments = iter(statistics)
    norms = {
        norm.slot: Norm(norm.batch, next(moments), next(moments), *scales[norm.slot])
        for norm in plan.norms
    }
    found_products: Pairs = {}
    with _without_autocast(x):
        padded = _pad(plan, x)
        values = dict(zip(plan.needed, pre, strict=True)) if plan.memory == 1 else {}
        if plan.memory != 1:
            values = compute_again(plan, padded, products)
        shape = next((value.shape for value in values.values()), grad.shape)
        elementwise: FusedBackward | ElementwiseBackward
        if fused.takes(plan, x, values, backward=True):
            elementwise = FusedBackward(plan, grad, values, norms)
        else:
            elementwise = ElementwiseBackward(plan, grad, shape, values, norms)
        total: Tensor | None = None
        source = padded.to(plan.dtype)
        for group in elementwise.run(overwrite=plan.memory != 1):
            together = [x for x in group if by_winograd(plan, x, source, products[x])]
            if together:
                own = {x: (products[x][0], group.pop(x), *needed_products[x]) for x in together}
                total, found = winograd_gradients(plan, source, own, needs[0], total)
                found_products |= found
                del own
            while group:
                letter, towards = group.popitem()
                needed = (needs[0], *needed_products[letter])
                total, *rest = branch_gradients(
                    plan, letter, (towards, source), products[letter], needed, total
                )
                del towards
                found_products[letter] = (rest[0], rest[1])
        if total is not None:
            total = unpad(plan.geometry, total.to(x.dtype), x)
    found_scales = {
        slot: (
            elementwise.sums[slot].projected if needed[0] else None,
            elementwise.sums[slot].plain if needed[1] else None,
        )
        for slot, needed in needed_scales.items()
    }
    gradients = flat(plan, found_products, found_scales)
    return [total, *(_like(g, p) for g, p in zip(gradients, parameters, strict=True))]


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


def _differentiable(
    plan: Plan, x: Tensor, parameters: Sequence[Any], statistics: Sequence[Tensor]
) -> Tensor:
    """Compute the output once more, recorded by autograd, for gradients of gradients."""
    products, scales = _named(plan, parameters)
    moments = iter(statistics)
    fixed = {norm.slot: (norm, next(moments), next(moments)) for norm in plan.norms}

    def normalise(slot: str, value: Tensor) -> Tensor:
        norm, mean, rstd = fixed[slot]
        weight, bias = scales[slot]
        if norm.batch:
            return F.batch_norm(value, None, None, weight, bias, True, 0.0, norm.eps)
        shape = (1, -1, *[1] * (value.dim() - 2))
        hat = (value - mean.view(shape)) * rstd.view(shape)
        return hat if weight is None else hat * weight.view(shape) + bias.view(shape)

    with _without_autocast(x):
        padded = _pad(plan, x)
        values = {
            letter: compute_branch(plan, letter, padded, products[letter])
            for letter in plan.letters
        }
        values = {x: normalise(x, v) if x in fixed else v for x, v in values.items()}
        y = plan.formula.combine(values)
        return plan.end(normalise(OUTER, y) if OUTER in fixed else y)


class _Hybrid(torch.autograd.Function):
    """The block as one step of autograd."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, *tensors: Any) -> Any:
        count = 2 * (len(plan.letters) + len(plan.norms))
        parameters, kept = tensors[:count], tensors[count:]
        y, updated, statistics, pre = forward(plan, x, parameters, kept)
        ctx.plan, ctx.counts = plan, (count, len(statistics))
        ctx.save_for_backward(x, *parameters, *statistics, *pre)
        ctx.mark_non_differentiable(*updated)
        ctx.set_materialize_grads(False)
        return (y, *updated)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        nothing = [None] * len(ctx.needs_input_grad)
        if grad is None:
            return tuple(nothing)
        x, *saved = ctx.saved_tensors
        first, second = ctx.counts
        parameters, statistics = saved[:first], saved[first : first + second]
        pre = saved[first + second :]
        needs = ctx.needs_input_grad[1 : 2 + first]
        if torch.is_grad_enabled():
            found = _recorded(ctx.plan, grad, x, parameters, statistics, needs)
        else:
            del saved
            found = backward(ctx.plan, grad, x, parameters, statistics, pre, needs)
        return (None, *found, *nothing[2 + first :])


def _recorded(
    plan: Plan,
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Any],
    statistics: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return gradients that can be differentiated again, at the memory cost of level 0."""
    wanted = [t for t, needed in zip((x, *parameters), needs, strict=True) if needed]
    y = _differentiable(plan, x, parameters, statistics)
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in needs]
