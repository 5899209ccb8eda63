"""Log-probabilities over the active neurons of a batch, as an autograd function over the C++ core.

The core samples the neurons, computes their logits and the softmax, and later the gradients: a
dense one for the hidden activations, row-sparse ones (COO tensors) for weight and bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qcompile.config import LSH
from qcompile.runtime import _core

__all__ = ["active_log_prob"]


class _ActiveLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batch: Any,
        sparse_grad: bool,
    ) -> Tensor:
        ctx.batch = batch
        ctx.has_bias = bias is not None
        ctx.sparse_grad = sparse_grad
        ctx.save_for_backward(hidden, weight)
        bias = None if bias is None else bias.detach()
        return torch.from_numpy(batch.forward(hidden.detach(), weight.detach(), bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rows = torch.from_numpy(ctx.batch.rows)
        grad_hidden = torch.empty_like(hidden)
        grad_rows = hidden.new_empty(len(rows), hidden.shape[1])
        grad_bias = hidden.new_empty(len(rows))
        ctx.batch.backward(
            hidden.detach(), weight.detach(), scale.contiguous(), grad_hidden, grad_rows, grad_bias
        )
        gradient = _row_sparse if ctx.sparse_grad else _dense
        count = weight.shape[0]
        return (
            grad_hidden,
            gradient(rows, grad_rows, count),
            gradient(rows, grad_bias, count) if ctx.has_bias else None,
            None,
            None,
        )


def _row_sparse(rows: Tensor, values: Tensor, count: int) -> Tensor:
    size = (count, *values.shape[1:])
    return torch.sparse_coo_tensor(
        rows[None], values, size, check_invariants=False, is_coalesced=True
    )


def _dense(rows: Tensor, values: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, rows, values)


def active_log_prob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    tables: Any,
    config: LSH,
    step: int,
    sparse_grad: bool,
) -> Tensor:
    """Return the mean log-probability of each example's labels over its active neurons.

    Args:
        hidden: float32 [B, d], contiguous.
        weight: float32 [N, d], contiguous.
        bias: float32 [N] or None.
        labels: int64 [B, T], contiguous, each example's labels, padded with -1.
        tables: a built ``_core.LshTables`` over the rows of ``weight``, or None.
        config: mode, how many neurons to activate and how they are chosen.
        step: counts training steps; selects the random numbers.
        sparse_grad: whether the gradients of weight and bias are row-sparse.

    Returns:
        float32 [B]. Row-sparse gradients are coalesced COO tensors.
    """
    batch = _core.SparseSoftmax(
        tables,
        hidden.detach(),
        labels,
        weight.shape[0],
        config.active,
        config.negatives,
        config.seed,
        step,
        torch.get_num_threads(),
        mode=config.mode,
        sampling=config.sampling,
        threshold=config.threshold,
    )
    result: Tensor = _ActiveLogProb.apply(hidden, weight, bias, batch, sparse_grad)
    return result
