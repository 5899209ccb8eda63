"""The branches of a block: computed, computed again and differentiated.

The latter two go a part of the batch at a time: torch reorders what a convolution takes and
returns, and of a part these copies are small and stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qcompile.nn.quadratic import winograd
from qcompile.nn.quadratic.formulas import Term
from qcompile.nn.quadratic.plan import Plan
from qcompile.nn.quadratic.products import branch, branch_backward
from qcompile.runtime.memory import huge_pages

PART_ELEMENTS = {"cpu": 1 << 20}
"""Most elements of a part of a batch that is convolved or differentiated at a time; no limit where
kernels are launched."""

_PLAIN = (Tensor, torch.nn.Parameter)

Pairs = dict[str, tuple[Any, Any]]
"""Weight and bias of a branch, or of a batch norm, by letter or slot."""


def compute_branch(plan: Plan, letter: str, padded: Tensor, pair: tuple[Any, Any]) -> Tensor:
    """Return what a branch computes, the bits of level 0.

    Args:
        plan: of the block.
        letter: of the branch.
        padded: the input, padded.
        pair: weight and bias.
    """
    term = plan.formula.branches[letter].term
    weight, bias = (None if tensor is None else tensor.to(plan.dtype) for tensor in pair)
    if term is Term.SQUARED_INPUT and padded.dtype != plan.dtype:
        squared = (padded * padded).to(plan.dtype)
        return branch(Term.FIRST_ORDER, plan.geometry, squared, weight, bias)
    return branch(term, plan.geometry, padded.to(plan.dtype), weight, bias)


def _compute_in_parts(plan: Plan, letter: str, padded: Tensor, pair: tuple[Any, Any]) -> Tensor:
    """Do what :func:`compute_branch` does, up to rounding."""
    bilinear = plan.formula.branches[letter].term is Term.BILINEAR
    if plan.geometry is None or type(padded) not in _PLAIN or bilinear:
        return compute_branch(plan, letter, padded, pair)
    parts = list(_parts(padded.numel() * max(1, len(pair[0]) // padded.shape[1]), padded))
    first = compute_branch(plan, letter, padded[parts[0]], pair)
    if len(parts) == 1:
        return first
    whole = _grown(first, len(padded))
    whole[parts[0]] = first
    for rows in parts[1:]:
        whole[rows] = compute_branch(plan, letter, padded[rows], pair)
    return whole


def compute_again(plan: Plan, padded: Tensor, products: Pairs) -> dict[str, Tensor]:
    """Compute once more what the backward pass needs; rounding may differ."""
    source = padded.to(plan.dtype)
    together = [x for x in plan.needed if by_winograd(plan, x, source, products[x])]
    values: dict[str, Tensor] = {}
    if together and plan.geometry is not None:
        weights, biases = zip(*(products[letter] for letter in together), strict=True)
        found = winograd.convolve(plan.geometry, source, weights, biases)
        values = dict(zip(together, found, strict=True))
    for letter in plan.needed:
        if letter not in values:
            values[letter] = _compute_in_parts(plan, letter, padded, products[letter])
    return values


def by_winograd(plan: Plan, letter: str, source: Tensor, pair: tuple[Any, Any]) -> bool:
    """Return whether a branch is a convolution of the input that Winograd's method computes."""
    first_order = plan.formula.branches[letter].term is Term.FIRST_ORDER
    return first_order and winograd.takes(plan.geometry, source, pair[0])


def _grown(part: Tensor, batch: int) -> Tensor:
    """Return room for a batch of what ``part`` is a part of, laid out alike."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(part.dim())
    kept = part.is_contiguous() or last is None or not part.is_contiguous(memory_format=last)
    layout = torch.contiguous_format if kept else last
    return huge_pages(torch.empty(batch, *part.shape[1:], dtype=part.dtype, memory_format=layout))


def branch_gradients(
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


def winograd_gradients(
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
