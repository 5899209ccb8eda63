"""The passes of a normalised block on a CPU: what ``batch_norm_block.passes`` does on a GPU.

The C++ kernels take one channel through all passes, so that memory is read about once. Gradients
are computed in float32, for float64 in float64. Outputs and statistics round as torch's own batch
norm of contiguous float32 tensors does: what the kernels do not round alike, other types, layouts
and activations in the forward pass, is left to torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

from qcompile.nn.quadratic.plan import Plan
from qcompile.runtime import _core
from qcompile.runtime.memory import huge_pages
from qcompile.triton_kernels.batch_norm_block.block import BatchNorm, Block, Pair, computed_in
from qcompile.triton_kernels.elementwise.activations import ACTIVATE
from qcompile.triton_kernels.elementwise.terms import Branches, Term

BACKWARD_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

_HALVING = ((2, 2), (2, 2), (0, 0), (1, 1))
"""Kernel, stride, padding and dilation of the pooling that the kernels know."""


def takes_forward(values: Mapping[str, Tensor]) -> bool:
    """Return whether outputs and statistics of branches are the same bits as torch's.

    Where each channel has one position torch's batch norm rounds in another way.
    """
    for x in values.values():
        planes = x.dim() > 2 and x.shape[2:].numel() > 1
        if x.dtype != torch.float32 or not planes or not x.is_contiguous():
            return False
    return rounds_as_torch()


@cache
def rounds_as_torch() -> bool:
    """Return whether this torch's batch norm computes the kernels' bits on this processor."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 37, 5, 9, generator=generator)
    weight, bias, mean, variance = torch.randn(4, 37, generator=generator)
    expected = mean.clone(), variance.abs_().clone()
    norm = BatchNorm(True, weight, bias, (mean, variance), 0.3)
    block = Block(Term("none"), (norm,), None, 1)
    y, _, updated = block_forward(block, Branches(x, None, None), overwrite=False)
    z = F.batch_norm(x, *expected, weight, bias, True, 0.3)
    pairs = zip((z, *expected), (y, *updated), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def takes_backward(plan: Plan, values: Mapping[str, Tensor]) -> bool:
    """Return whether the kernels know types and layouts of branches, and the pooling."""
    tensors = list(values.values())
    if any(x.dtype not in BACKWARD_DTYPES or x.dtype != tensors[0].dtype for x in tensors):
        return False
    if not any(all(_fits(x, last) for x in tensors) for last in (False, True)):
        return False
    return plan.pool is None or (bool(tensors) and pools(plan, tensors[0]))


def pools(plan: Plan, like: Tensor) -> bool:
    """Return whether the kernels know the pooling of what branches computed."""
    if plan.pool is None or plan.pool[:4] != _HALVING or like.dim() != 4:
        return False
    if plan.activation not in (None, ("ReLU",)) or like.numel() == 0:
        return False
    lines, width = like.shape[2:]
    shape = _Layout(like).view(like).shape
    return bool(_core.block_pools(*shape, lines, width))


def _fits(x: Tensor, channels_last: bool) -> bool:
    if not channels_last:
        return x.is_contiguous()
    if x.dim() not in (4, 5):
        return False
    return x.is_contiguous(
        memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    )


class _Layout:
    """How tensors of one shape lie in memory: as [outer, C, inner]."""

    def __init__(self, like: Tensor) -> None:
        self._last = not _fits(like, False)
        self._like = like

    def view(self, x: Tensor) -> Tensor:
        """Return a view of a tensor that lies so."""
        x = x.detach()
        if self._last:
            return x.movedim(1, -1).reshape(-1, x.shape[1], 1)
        return x.view(*x.shape[:2], -1)

    def fit(self, x: Tensor) -> Tensor:
        """Copy a tensor unless it lies so and is of the same type."""
        if x.dtype == self._like.dtype and _fits(x, self._last):
            return x
        layout = torch.contiguous_format
        if self._last:
            layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return torch.empty_like(x, dtype=self._like.dtype, memory_format=layout).copy_(x)


def _describe(block: Block, activation: str, like: Tensor, pooled: bool) -> tuple[object, ...]:
    """Say what to compute, as the kernels are told."""
    norms = list(block.slots) + ([None] if block.outer is None else [])
    kinds = ["none" if norm is None else "batch" if norm.batch else "fixed" for norm in norms]
    return block.term.product, activation, kinds, *(like.shape[2:] if pooled else (0, 0))


def _constants(
    block: Block, channels: int, dtype: torch.dtype, statistics: Sequence[Pair | None]
) -> Tensor:
    """Return mean, one over the deviation, weight and bias of each slot: [4, slots, C]."""
    found = torch.zeros(4, len(block.norms) + 1, channels, dtype=dtype)
    found[1:3] = 1
    for slot, (norm, pair) in enumerate(zip(block.slots, statistics, strict=True)):
        known = pair or (None, None)
        parts = (*known, norm and norm.weight, norm and norm.bias)
        for row, part in zip(found, parts, strict=True):
            if part is not None:
                row[slot] = part.detach()
    return found


def block_forward(
    block: Block, branches: Branches, *, overwrite: bool, pooled: bool = False
) -> tuple[Tensor, list[Pair | None], list[Tensor]]:
    """Compute a block.

    Args:
        block: what to compute.
        branches: what the branches computed; float32, contiguous and not empty.
        overwrite: whether ``branches.a`` may become the output.
        pooled: whether a max-pooling of 2×2 follows, see :func:`pools`.

    Returns:
        The output; mean and one over the deviation of each slot, ``None`` where there is no batch
        norm; new running mean and variance of each batch norm in training that has them.
    """
    values = branches.present
    channels = values[0].shape[1]
    fixed = [
        None if norm is None or norm.batch else _running(norm, channels) for norm in block.slots
    ]
    constants = _constants(block, channels, torch.float32, fixed)
    running = torch.zeros(2, *constants.shape[1:])
    for slot, norm in enumerate(block.slots):
        if norm is not None and norm.batch and norm.running is not None:
            running[0, slot], running[1, slot] = norm.running
    filled = [norm or BatchNorm(False, None, None) for norm in block.slots]
    filled += [BatchNorm(False, None, None)] * (running.shape[1] - len(filled))
    a, activation = values[0], block.term.activation
    if pooled:
        y = huge_pages(a.new_empty(*a.shape[:2], *(size // 2 for size in a.shape[2:])))
    else:
        y = a if overwrite else huge_pages(torch.empty_like(a))
    layout = _Layout(a)
    ends = activation if activation == "relu" else "none"
    _core.block_forward(
        [layout.view(x) for x in values],
        _describe(block, ends, a, pooled),
        constants,
        running,
        [norm.momentum for norm in filled],
        [norm.eps for norm in filled],
        layout.view(y),
        torch.get_num_threads(),
    )
    if activation != "relu":
        y = ACTIVATE[activation](y)
    statistics: list[Pair | None] = []
    updated: list[Tensor] = []
    for slot, norm in enumerate(block.slots):
        pair = (constants[0, slot].clone(), constants[1, slot].clone())
        statistics.append(None if norm is None else pair)
        if norm is not None and norm.batch and norm.running is not None:
            updated += [running[0, slot].clone(), running[1, slot].clone()]
    return y, statistics, updated


def _running(norm: BatchNorm, channels: int) -> Pair:
    assert norm.running is not None
    mean, variance = norm.running
    return mean, (variance + norm.eps).rsqrt()


class BlockBackward:
    """The gradients of a block.

    Args:
        block: what was computed.
        branches: what the branches computed; not empty, of one layout.
        statistics: as :func:`block_forward` returned them.
        pooled: likewise.
    """

    def __init__(
        self,
        block: Block,
        branches: Branches,
        statistics: Sequence[Pair | None],
        *,
        pooled: bool = False,
    ) -> None:
        self._branches = branches
        a = branches.a
        self._block = _describe(block, block.term.activation, a, pooled)
        dtype = computed_in(a.dtype)
        self._layout = _Layout(a)
        self._constants = _constants(block, a.shape[1], dtype, statistics)
        self._sums = torch.zeros(2, *self._constants.shape[1:], dtype=dtype)

    @property
    def plain(self) -> Tensor:
        """Σ g of each slot: gradients of the biases."""
        return self._sums[0]

    @property
    def projected(self) -> Tensor:
        """Σ g∘x̂ of each slot: gradients of the weights."""
        return self._sums[1]

    def take(self, grad: Tensor) -> None:
        """Add up what the batch norms need.

        Args:
            grad: of the output; not written to.
        """
        self._grad = self._layout.fit(grad)
        _core.block_backward_sums(*self._shared(), torch.get_num_threads())

    def write(
        self, wanted: str, *, overwrite: bool, spare: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the gradients of some branches, after :meth:`take`.

        Args:
            wanted: their letters, ``a``, ``b`` and ``c``.
            overwrite: whether they take the place of what the branches computed. That is gone
                then, so that all wanted ones have to be wanted at once.
            spare: of no use here.
        """
        sources = self._branches.by_letter
        out = {letter: sources[letter] for letter in wanted}
        if not overwrite:
            out = {letter: huge_pages(torch.empty_like(x)) for letter, x in out.items()}
        outputs = [self._layout.view(out[x]) if x in out else None for x in sources]
        _core.block_backward_write(*self._shared(), outputs, torch.get_num_threads())
        return out

    def _shared(self) -> tuple[object, ...]:
        view = self._layout.view
        values = [view(x) for x in self._branches.present]
        return view(self._grad), values, self._block, self._constants, self._sums
