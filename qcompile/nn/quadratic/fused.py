"""The element-wise half of hybrid back-propagation by kernels.

Computes what :mod:`qcompile.nn.quadratic.elementwise` and torch's batch norms do elsewhere, in few
passes over memory: see :mod:`qcompile.triton_kernels.batch_norm_block.passes` for CUDA tensors and
:mod:`qcompile.nn.quadratic.cpu`. On a GPU statistics come from other kernels than at level 0, so
that running statistics and outputs are equal to level 0's up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qcompile.nn.quadratic import cpu
from qcompile.nn.quadratic.elementwise import Norm
from qcompile.nn.quadratic.plan import OUTER, Plan
from qcompile.triton_kernels.availability import has_triton
from qcompile.triton_kernels.hadamard.spec import DTYPES

if TYPE_CHECKING:
    from qcompile.triton_kernels.batch_norm_block.block import BatchNorm, Block
    from qcompile.triton_kernels.elementwise.terms import Branches

POOL_ELEMENTS = 1 << 22
"""Elements of a part of the batch whose pooling is differentiated at a time."""

_ACTIVATIONS = {
    None: "none",
    ("ReLU",): "relu",
    ("GELU", "none"): "gelu",
    ("GELU", "tanh"): "gelu_tanh",
    ("SiLU",): "silu",
    ("Sigmoid",): "sigmoid",
    ("Tanh",): "tanh",
}
"""The kernels' names of what a plan calls its activations."""


def takes(plan: Plan, x: Tensor, values: Mapping[str, Tensor], *, backward: bool = False) -> bool:
    """Return whether kernels compute the element-wise half of a plan for an input.

    Tensors that only stand for others, and what somebody watches, get plain operators.

    Args:
        plan: what is computed.
        x: the input.
        values: what the branches computed, by letter.
        backward: whether gradients are, and not the output.
    """
    if x.numel() == 0 or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if plan.activation not in _ACTIVATIONS or torch._C._len_torch_dispatch_stack() != 0:
        return False
    if x.device.type == "cpu":
        return cpu.takes_backward(plan, values) if backward else cpu.takes_forward(values)
    return x.is_cuda and has_triton() and plan.dtype in DTYPES


def _passes(plan: Plan, x: Tensor) -> tuple[ModuleType, dict[str, bool]]:
    """Return the module that has ``block_forward`` and ``BlockBackward`` for a device.

    Options for them follow if they pool as well.
    """
    if x.device.type == "cpu":
        return cpu, {"pooled": True} if cpu.pools(plan, x) else {}
    from qcompile.triton_kernels.batch_norm_block import passes

    return passes, {}


@dataclass(frozen=True)
class Places:
    """Which branch of a plan the kernels call a, b and c.

    Args:
        product: as the kernels call it.
        letters: by the kernels' names.
    """

    product: str
    letters: dict[str, str]

    @classmethod
    def of(cls, plan: Plan, present: Sequence[str]) -> Places:
        """Arrange the branches that there are."""
        factors = plan.factors
        added = [letter for letter in present if letter not in factors]
        if not factors:
            return cls("none", dict(zip("ac", added, strict=False)))
        letters = {"a": factors[0]}
        if factors[1] != factors[0]:
            letters["b"] = factors[1]
        if added:
            letters["c"] = added[0]
        return cls("square" if factors[0] == factors[1] else "pair", letters)

    def branches(self, values: Mapping[str, Tensor]) -> Branches:
        """Return the kernels' tensors."""
        from qcompile.triton_kernels.elementwise.terms import Branches

        a, b, c = (values.get(self.letters.get(name, "")) for name in "abc")
        assert a is not None
        return Branches(a, b, c)

    def block(self, plan: Plan, norms: Mapping[str, BatchNorm]) -> Block:
        """Return what the kernels compute."""
        from qcompile.triton_kernels.batch_norm_block.block import Block
        from qcompile.triton_kernels.elementwise.terms import Term

        term = Term(self.product, activation=_ACTIVATIONS[plan.activation])
        inner = tuple(norms.get(letter) for letter in self.letters.values())
        return Block(term, inner, norms.get(OUTER), 1)


def combine(
    plan: Plan,
    values: Mapping[str, Tensor],
    scales: Mapping[str, tuple[Any, Any]],
    running: Mapping[str, tuple[Tensor, Tensor]],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Normalise, multiply, add and activate what the branches computed.

    Args:
        plan: what to compute.
        values: what the branches computed, by letter; above level 1 they may be overwritten.
        scales: weight and bias of each batch norm, by slot.
        running: running mean and variance of those that have them, by slot.

    Returns:
        The output; new running statistics; mean and one over the deviation of
        each batch norm.
    """
    from qcompile.triton_kernels.batch_norm_block.block import BatchNorm

    norms = {
        norm.slot: BatchNorm(
            norm.batch, *scales[norm.slot], running.get(norm.slot), norm.momentum, norm.eps
        )
        for norm in plan.norms
    }
    places = Places.of(plan, plan.letters)
    block, branches = places.block(plan, norms), places.branches(values)
    passes, options = _passes(plan, branches.a)
    y, statistics, updated = passes.block_forward(
        block, branches, overwrite=plan.memory != 1, **options
    )
    if not options:
        y = plan.pooled(y)
    return y, updated, [tensor for pair in statistics if pair is not None for tensor in pair]


@dataclass(frozen=True)
class Sums:
    """Gradients of a batch norm's offset and scale, each [N]."""

    plain: Tensor
    projected: Tensor


class FusedBackward:
    """Does what :class:`qcompile.nn.quadratic.elementwise.ElementwiseBackward` does, by kernels.

    Arguments are the same; ``grad`` is not written to.
    """

    def __init__(
        self, plan: Plan, grad: Tensor, pre: dict[str, Tensor], norms: dict[str, Norm]
    ) -> None:
        from qcompile.triton_kernels.batch_norm_block.block import BatchNorm

        self._plan, self._grad, self._pre = plan, grad, pre
        self.sums: dict[str, Sums] = {}
        self._same = [letter for letter in plan.letters if letter not in pre]
        self._backward: Any = None
        if not pre:
            return
        self._places = Places.of(plan, [letter for letter in plan.letters if letter in pre])
        own = {slot: BatchNorm(n.batch, n.gamma, n.beta) for slot, n in norms.items()}
        block = self._places.block(plan, own)
        self._plain = self._places.product == "none" and not block.of_branches
        slots = [*self._places.letters.values(), *([OUTER] if OUTER in norms else [])]
        pairs = [(norms[x].mean, norms[x].rstd) if x in norms else None for x in slots]
        branches = self._places.branches(pre)
        passes, options = _passes(plan, branches.a)
        self._backward = passes.BlockBackward(block, branches, pairs, **options)
        self._spare = self._unpooled() if plan.pool is not None and not options else None
        self._backward.take(grad if self._spare is None else self._spare)
        for number, slot in enumerate(slots):
            if slot in norms:
                plain, projected = self._backward.plain[number], self._backward.projected[number]
                self.sums[slot] = Sums(plain.clone(), projected.clone())

    def _unpooled(self) -> Tensor:
        """Return the gradient of what was pooled."""
        assert self._backward is not None
        like = next(iter(self._pre.values()))
        batch = len(like)
        step = max(1, POOL_ELEMENTS * batch // like.numel())
        if step >= batch:
            return self._plan.pool_backward(self._grad, self._backward.output(slice(None)))
        towards = torch.empty_like(like, dtype=self._grad.dtype)
        for start in range(0, batch, step):
            rows = slice(start, start + step)
            towards[rows] = self._plan.pool_backward(self._grad[rows], self._backward.output(rows))
        return towards

    def run(self, *, overwrite: bool) -> Iterator[dict[str, Tensor]]:
        """Yield letters and gradients of branches, in an order that frees memory early.

        Args:
            overwrite: whether ``pre`` may be written to.
        """
        for letter in self._same:
            yield {letter: self._grad}
        backward, self._backward = self._backward, None
        if backward is None:
            return
        names = self._places.letters
        if self._plain:  # all that is added gets one gradient
            (towards,) = backward.write("a", overwrite=overwrite, spare=self._spare).values()
            del backward
            self._pre.clear()
            yield dict.fromkeys(names.values(), towards)
            return
        groups = [list(names)] if overwrite else [["c"], [x for x in names if x != "c"]]
        groups = [group for group in ([x for x in g if x in names] for g in groups) if group]
        for group in groups:
            last = group is groups[-1]
            out = backward.write(
                "".join(group), overwrite=overwrite, spare=self._spare if last else None
            )
            if last:
                del backward
                self._spare = None
                self._pre.clear()
            found = {names[name]: out.pop(name) for name in group}
            yield found
