"""Normalised blocks by kernels; importing this module needs triton."""

from __future__ import annotations

from torch import Tensor

from qcompile.triton_kernels.batch_norm_block.passes import (
    BatchNorm,
    Block,
    BlockBackward,
    block_forward,
)
from qcompile.triton_kernels.batch_norm_block.spec import Spec
from qcompile.triton_kernels.elementwise.terms import Branches, Term


def compute(
    values: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    running: list[Tensor],
    spec: Spec,
) -> list[Tensor]:
    """Return output, mean and scale of each batch norm, new running means and variances."""
    block, branches = _block(values, weights, biases, running, spec)
    y, statistics, updated = block_forward(block, branches, overwrite=False)
    return [y, *(x for pair in statistics if pair is not None for x in pair), *updated]


def gradients(
    grad: Tensor,
    values: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    statistics: list[Tensor],
    spec: Spec,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the gradients of values, and of weights and biases of all batch norms."""
    block, branches = _block(values, weights, biases, [], spec)
    pairs = iter(zip(statistics[::2], statistics[1::2], strict=True))
    slots = [None if norm is None else next(pairs) for norm in block.slots]
    backward = BlockBackward(block, branches, slots)
    backward.take(grad)
    letters = "".join(x for x in "abc" if getattr(branches, x) is not None)
    out = backward.write(letters, overwrite=False)
    normed = [slot for slot, norm in enumerate(block.slots) if norm is not None]
    return (
        list(out.values()),
        [backward.projected.select(0, slot).clone() for slot in normed],
        [backward.plain.select(0, slot).clone() for slot in normed],
    )


def _block(
    values: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    running: list[Tensor],
    spec: Spec,
) -> tuple[Block, Branches]:
    norms: list[BatchNorm | None] = [
        BatchNorm(
            True,
            weights[slot] if weights else None,
            biases[slot] if biases else None,
            (running[2 * slot], running[2 * slot + 1]) if running else None,
            spec.momentum,
            spec.eps,
        )
        for slot in range(spec.count(len(values)))
    ]
    inner = norms[: len(values)] if spec.of_branches else [None] * len(values)
    term = Term(spec.product, activation=spec.activation)
    channel = spec.channels % values[0].dim()
    block = Block(term, tuple(inner), norms[-1] if spec.outer else None, channel)
    b = values[1] if spec.product == "pair" else None
    c = values[-1] if spec.has_c(len(values)) else None
    return block, Branches(values[0], b, c)
