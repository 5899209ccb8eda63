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

from qcompile.nn.quadratic import fused, winograd
from qcompile.nn.quadratic.elementwise import ElementwiseBackward, Norm
from qcompile.nn.quadratic.formulas import Term
from qcompile.nn.quadratic.fused import FusedBackward
from qcompile.nn.quadratic.plan import OUTER, NormPlan, Plan
from qcompile.nn.quadratic.products import branch, branch_backward, unpad
from qcompile.runtime.memory import huge_pages

PART_ELEMENTS = {"cpu": 1 << 20}
"""Most elements of a part of a batch that is convolved or differentiated at a time; no limit where
kernels are launched."""

_PLAIN = (Tensor, torch.nn.Parameter)

Pairs = dict[str, tuple[Any, Any]]
"""Weight and bias of a branch, or of a batch norm, by letter or slot."""


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


def _branch(plan: Plan, letter: str, padded: Tensor, pair: tuple[Any, Any]) -> Any:
    term = plan.formula.branches[letter].term
    weight, bias = pair[0].to(plan.dtype), pair[1]
    bias = None if bias is None else bias.to(plan.dtype)
    if term is Term.SQUARED_INPUT and padded.dtype != plan.dtype:
        return branch(
            Term.FIRST_ORDER, plan.geometry, (padded * padded).to(plan.dtype), weight, bias
        )
    source = padded.to(plan.dtype)
    if plan.geometry is None or type(source) not in _PLAIN or term is Term.BILINEAR:
        return branch(term, plan.geometry, source, weight, bias)
    # torch reorders what a convolution takes and returns: of a part that is done in the cache.
    parts = list(_parts(source.numel() * max(1, len(weight) // source.shape[1]), source))
    first = branch(term, plan.geometry, source[parts[0]], weight, bias)
    if len(parts) == 1:
        return first
    whole = _grown(first, len(source))
    whole[parts[0]] = first
    for rows in parts[1:]:
        whole[rows] = branch(term, plan.geometry, source[rows], weight, bias)
    return whole


def _again(plan: Plan, padded: Tensor, products: Pairs) -> dict[str, Tensor]:
    """Compute once more what the backward pass needs; rounding may differ."""
    source = padded.to(plan.dtype)
    together = [x for x in plan.needed if _by_winograd(plan, x, source, products[x])]
    values: dict[str, Tensor] = {}
    if together and plan.geometry is not None:
        weights, biases = zip(*(products[letter] for letter in together), strict=True)
        found = winograd.convolve(plan.geometry, source, weights, biases)
        values = dict(zip(together, found, strict=True))
    for letter in plan.needed:
        if letter not in values:
            values[letter] = _branch(plan, letter, padded, products[letter])
    return values


def _by_winograd(plan: Plan, letter: str, source: Tensor, pair: tuple[Any, Any]) -> bool:
    """Return whether a branch is a convolution of the input that Winograd's method computes."""
    first_order = plan.formula.branches[letter].term is Term.FIRST_ORDER
    return first_order and winograd.takes(plan.geometry, source, pair[0])


def _grown(part: Tensor, batch: int) -> Tensor:
    """Return room for a batch of what ``part`` is a part of, laid out alike."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(part.dim())
    kept = part.is_contiguous() or last is None or not part.is_contiguous(memory_format=last)
    layout = torch.contiguous_format if kept else last
    return huge_pages(torch.empty(batch, *part.shape[1:], dtype=part.dtype, memory_format=layout))


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
        values = {x: _branch(plan, x, padded, products[x]) for x in plan.letters}
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
            values = _again(plan, padded, products)
        shape = next((value.shape for value in values.values()), grad.shape)
        elementwise: FusedBackward | ElementwiseBackward
        if fused.takes(plan, x, values, backward=True):
            elementwise = FusedBackward(plan, grad, values, norms)
        else:
            elementwise = ElementwiseBackward(plan, grad, shape, values, norms)
        total: Tensor | None = None
        source = padded.to(plan.dtype)
        for group in elementwise.run(overwrite=plan.memory != 1):
            together = [x for x in group if _by_winograd(plan, x, source, products[x])]
            if together:
                own = {x: (products[x][0], group.pop(x), *needed_products[x]) for x in together}
                total, found = _winograd_gradients(plan, source, own, needs[0], total)
                found_products |= found
                del own
            while group:
                letter, towards = group.popitem()
                needed = (needs[0], *needed_products[letter])
                total, *rest = _branch_gradients(
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


def _branch_gradients(
    plan: Plan,
    letter: str,
    values: tuple[Tensor, Tensor],
    pair: tuple[Any, Any],
    needed: tuple[bool, bool, bool],
    total: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Differentiate one branch, a part of the batch at a time.

    A convolution reorders what it is given and what it returns; of a part these copies are small.

    Args:
        plan: what was computed.
        letter: of the branch.
        values: gradient of what it computed, and the padded input.
        pair: its weight and bias.
        needed: whether the gradients of input, weight and bias are.
        total: what other branches send towards the input; it is added to.

    Returns:
        The new total, the gradients of weight and bias.
    """
    towards, source = values
    term = plan.formula.branches[letter].term
    weight, bias = pair[0].to(plan.dtype), pair[1]
    parts = (
        [slice(None)]
        if term is Term.BILINEAR
        else list(_parts(max(towards.numel(), source.numel()), source))
    )
    sums: list[Tensor | None] = [None, None]
    first = total is None
    if first and needed[0] and len(parts) > 1:
        total = torch.empty_like(source)
    for rows in parts:
        seen = source[rows]
        part, *own = branch_backward(term, plan.geometry, towards[rows], seen, weight, bias, needed)
        sums = [_sum(*both) for both in zip(sums, own, strict=True)]
        if part is None:
            continue
        sent = _accumulate(None if first or total is None else total[rows], part, seen, term)
        if len(parts) == 1:
            total = sent
        elif first and total is not None:
            total[rows] = sent
    return total, sums[0], sums[1]


def _winograd_gradients(
    plan: Plan,
    source: Tensor,
    branches: dict[str, tuple[Tensor, Tensor, bool, bool]],
    needs_input: bool,
    total: Tensor | None,
) -> tuple[Tensor | None, Pairs]:
    """Differentiate convolutions of 3×3 of the input together.

    Args:
        plan: what was computed.
        source: the padded input.
        branches: by letter weight, gradient of what was computed, and whether those of weight and
            bias are needed.
        needs_input: whether that of the input is.
        total: what other branches send towards the input; it is added to.

    Returns:
        The new total, gradients of weights and biases.
    """
    geometry = plan.geometry
    assert geometry is not None
    grads = {letter: own[1].contiguous() for letter, own in branches.items()}
    weights = {letter: own[0] for letter, own in branches.items()}
    if needs_input:
        both = (list(grads.values()), source, list(weights.values()))
        total = winograd.towards_input(geometry, *both, total)
    of_weight = [letter for letter, own in branches.items() if own[2]]
    of_weights: dict[str, Tensor] = {}
    if of_weight:
        some = ([grads[x] for x in of_weight], source, [weights[x] for x in of_weight])
        found = winograd.towards_weights(geometry, *some)
        of_weights = dict(zip(of_weight, found, strict=True))
    return total, {
        letter: (of_weights.get(letter), grads[letter].sum((0, 2, 3)) if own[3] else None)
        for letter, own in branches.items()
    }


def _parts(elements: int, source: Tensor) -> Iterator[slice]:
    """Divide a batch evenly so that no part has more than :data:`PART_ELEMENTS`.

    Args:
        elements: of the larger of input and output.
        source: the input.
    """
    batch, limit = len(source), PART_ELEMENTS.get(source.device.type)
    count = 1 if limit is None else max(1, min(batch, -(-elements // limit)))
    step = max(1, -(-batch // count))
    for start in range(0, max(1, batch), step):
        yield slice(start, start + step)


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Add up in float32 what comes in half precision."""
    if total is None or part is None:
        return part
    half = total.dtype in (torch.bfloat16, torch.float16)
    return total.float() + part if half else total.add_(part)


def _accumulate(total: Tensor | None, part: Tensor, source: Tensor, term: Term) -> Tensor:
    """Add what one branch sends towards x; ``part`` is free to be overwritten."""
    if term is Term.SQUARED_INPUT:
        if total is None:
            return part.mul_(source).mul_(2)
        return total.addcmul_(part, source, value=2)
    return part if total is None else total.add_(part)


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
            letter: _branch(plan, letter, padded, products[letter]) for letter in plan.letters
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
