"""The passes over memory of a normalised block; importing this module needs triton.

Forward, with s the branches and t the tensors of the block:

==========================  ======  ======
pass                        reads   writes
==========================  ======  ======
moments of each branch      s
combination, its moments    s       1
outer batch norm, in place  1       1
==========================  ======  ======

Backward, where everything between the branches and the output is recomputed:

=======================================  ======  ======
pass                                     reads   writes
=======================================  ======  ======
sums of the outer batch norm             s + 1
sums of the branches' batch norms        s + 1
gradients, over the branches if wanted   s + 1   s
=======================================  ======  ======
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompile.triton_kernels.batch_norm_block.block import BatchNorm, Block, Pair, computed_in
from qcompile.triton_kernels.elementwise.backward import launch_backward
from qcompile.triton_kernels.elementwise.forward import launch_forward
from qcompile.triton_kernels.elementwise.moments import launch_finish_moments, launch_moments
from qcompile.triton_kernels.elementwise.sums import launch_finish, launch_sums
from qcompile.triton_kernels.elementwise.terms import Branches, Constants, Term
from qcompile.triton_kernels.elementwise.walk import Walk, walk_over


def block_forward(
    block: Block, branches: Branches, *, overwrite: bool
) -> tuple[Tensor, list[Pair | None], list[Tensor]]:
    """Compute a block.

    Args:
        block: what to compute.
        branches: what the branches computed; not empty.
        overwrite: whether ``branches.a`` may become the output.

    Returns:
        The output; mean and one over the deviation of each slot, ``None`` where there is no batch
        norm; new running mean and variance of each batch norm in training that has them.
    """
    walk, (a, b, c) = walk_over([branches.a, branches.b, branches.c], block.channel)
    assert a is not None
    branches = Branches(a, b, c)
    rows = (len(block.slots), walk.channels)
    scale = a.new_empty(rows, dtype=computed_in(a.dtype))
    constants = Constants(scale, torch.empty_like(scale), of_branches=block.of_branches)
    statistics: list[Pair | None] = []
    updated: list[Tensor] = []

    def fix(
        slot: int, norm: BatchNorm | None, what: Branches, term: Term, y: Tensor | None
    ) -> None:
        found, new = _fix(walk, norm, what, constants, term, y, slot)
        statistics.append(found)
        updated.extend(new)

    for slot, (norm, x) in enumerate(zip(block.norms, branches.present, strict=True)):
        if not block.of_branches:
            statistics.append(None)
            continue
        fix(slot, norm, Branches(x, None, None), Term("none"), None)
    y = a if overwrite else walk.empty(a)
    last = len(block.norms)
    if block.outer is not None:
        fix(last, block.outer, branches, block.term, y)
    if block.outer is None or not block.outer.batch:
        has_outer = block.outer is not None
        launch_forward(walk, branches, constants, block.term, y, has_outer)
    else:
        end = Term("none", activation=block.term.activation)
        own = constants.slots(last, 1)
        launch_forward(walk, Branches(y, None, None), own, end, y)
    return y, statistics, updated


def _fix(
    walk: Walk,
    norm: BatchNorm | None,
    branches: Branches,
    constants: Constants,
    term: Term,
    y: Tensor | None,
    slot: int,
) -> tuple[Pair | None, list[Tensor]]:
    """Write scale and shift of a slot; return statistics, and new running ones.

    In training the statistics are those of what ``branches`` combine to, which is written to ``y``.
    """
    assert constants.scale is not None
    assert constants.shift is not None
    scale, shift = constants.scale.select(0, slot), constants.shift.select(0, slot)
    if norm is None:
        scale.fill_(1)
        shift.zero_()
        return None, []
    if norm.batch:
        mean, rstd = torch.empty_like(scale), torch.empty_like(scale)
        partial = launch_moments(
            walk, branches, constants if y is not None else Constants(), term, y
        )
        new = launch_finish_moments(
            partial,
            walk.count,
            (norm.weight, norm.bias),
            norm.running,
            norm.eps,
            norm.momentum,
            (mean, rstd, scale, shift),
        )
        return (mean, rstd), new
    assert norm.running is not None
    mean = norm.running[0].to(scale.dtype, copy=True)
    rstd = (norm.running[1].to(scale.dtype) + norm.eps).rsqrt()
    scale.copy_(rstd if norm.weight is None else rstd * norm.weight)
    torch.mul(mean, scale, out=shift).neg_()
    if norm.bias is not None:
        shift.add_(norm.bias)
    return (mean, rstd), []


class BlockBackward:
    """The gradients of a block.

    Args:
        block: what was computed.
        branches: what the branches computed; not empty.
        statistics: as :func:`block_forward` returned them.
    """

    def __init__(self, block: Block, branches: Branches, statistics: Sequence[Pair | None]) -> None:
        self._block, self._branches = block, branches
        a, channels = branches.a, branches.a.shape[block.channel]
        dtype = computed_in(a.dtype)
        self._constants = _constants(block, statistics, channels, dtype, a.device)
        self.plain = a.new_zeros((len(block.slots), channels), dtype=dtype)
        """Σ g of each slot: gradients of the biases."""
        self.projected = torch.zeros_like(self.plain)
        """Σ g∘x̂ of each slot: gradients of the weights."""

    def output(self, rows: slice) -> Tensor:
        """Compute the block's output once more, of some examples."""
        parts = [self._branches.a, self._branches.b, self._branches.c]
        cut = [None if x is None else x[rows] for x in parts]
        walk, (a, b, c) = walk_over(cut, self._block.channel)
        assert a is not None
        y = walk.empty(a)
        has_outer = self._block.outer is not None
        branches = Branches(a, b, c)
        launch_forward(walk, branches, self._constants, self._block.term, y, has_outer)
        return y

    def take(self, grad: Tensor) -> None:
        """Add up what the batch norms need: that behind the combination first.

        Args:
            grad: of the output; not written to.
        """
        block, last = self._block, len(self._block.norms)
        tensors = [grad, self._branches.a, self._branches.b, self._branches.c]
        self._walk, (grad_, a, b, c) = walk_over(tensors, block.channel)
        assert grad_ is not None
        assert a is not None
        self._grad, self._branches = grad_, Branches(a, b, c)
        stages = [(True, last, 1)] if block.outer is not None else []
        stages += [(False, 0, last)] if block.of_branches else []
        for of_outer, first, count in stages:
            partial = launch_sums(
                self._walk,
                self._grad,
                self._branches,
                self._constants,
                block.term,
                has_outer=block.outer is not None,
                of_outer=of_outer,
            )
            slots = block.slots[first : first + count]
            bits = sum(1 << i for i, norm in enumerate(slots) if norm is not None and norm.batch)
            launch_finish(
                partial,
                self._constants.slots(first, count),
                self.plain.narrow(0, first, count),
                self.projected.narrow(0, first, count),
                self._walk.count,
                bits,
            )

    def write(
        self, wanted: str, *, overwrite: bool, spare: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the gradients of some branches, after :meth:`take`.

        Args:
            wanted: their letters, ``a``, ``b`` and ``c``.
            overwrite: whether they take the place of what the branches computed. That is gone
                then, so that all wanted ones have to be wanted at once.
            spare: memory that the last of them takes otherwise, if it is what this class would
                allocate; it may be the gradient that :meth:`take` took.
        """
        sources = {"a": self._branches.a, "b": self._branches.b, "c": self._branches.c}
        present = {x: sources[x] for x in wanted}
        out: dict[str, Tensor] = {}
        for letter, source in present.items():
            assert source is not None
            out[letter] = source if overwrite else self._walk.empty(source)
        last = wanted[-1]
        if spare is not None and not overwrite and _alike(spare, out[last]):
            out[last] = spare
        launch_backward(
            self._walk,
            self._grad,
            self._branches,
            self._constants,
            self._block.term,
            [out.get(letter) for letter in "abc"],
            has_outer=self._block.outer is not None,
        )
        return out


def _alike(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride()


def _constants(
    block: Block,
    statistics: Sequence[Pair | None],
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Constants:
    """Return the constants of all slots, with room for slopes and offsets."""
    if all(found is None for found in statistics):
        return Constants()
    zero = torch.zeros(channels, dtype=dtype, device=device)
    one = torch.ones_like(zero)
    means, rstds, weights, biases = [], [], [], []
    for norm, found in zip(block.slots, statistics, strict=True):
        mean, rstd = found or (zero, one)
        means.append(mean.to(dtype))
        rstds.append(rstd.to(dtype))
        weights.append(one if norm is None or norm.weight is None else norm.weight.to(dtype))
        biases.append(zero if norm is None or norm.bias is None else norm.bias.to(dtype))
    mean, rstd = torch.stack(means), torch.stack(rstds)
    scale = torch.stack(weights).mul_(rstd)
    shift = torch.stack(biases).addcmul_(mean, scale, value=-1)
    slope = torch.zeros_like(mean)
    offset = torch.zeros_like(mean)
    return Constants(scale, shift, mean, rstd, slope, offset, of_branches=block.of_branches)
