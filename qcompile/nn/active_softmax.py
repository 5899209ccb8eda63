"""Log-probabilities over the active neurons of a batch, as an autograd function over the C++ core.

The core samples the neurons, computes their logits and the softmax, and later the gradients: a
dense one for the hidden activations, row-sparse ones (COO tensors) for weight and bias.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qcompile.config import LSH
from qcompile.nn.row_sparse import row_gradient
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
        updates: _Updates | None,
    ) -> Tensor:
        if updates is not None:
            batch.catch_up(*updates.bound())
        ctx.batch, ctx.updates, ctx.sparse_grad = batch, updates, sparse_grad
        ctx.bias = None if bias is None else bias.detach()
        ctx.save_for_backward(hidden, weight)
        return torch.from_numpy(batch.forward(hidden.detach(), weight.detach(), ctx.bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        scale = scale.contiguous()
        grad_hidden = torch.empty_like(hidden)
        if ctx.updates is not None:
            ctx.batch.backward_update(hidden, weight, scale, grad_hidden, *ctx.updates.bound())
            return grad_hidden, None, None, None, None, None
        rows = torch.from_numpy(ctx.batch.rows)
        grad_rows = hidden.new_empty(len(rows), hidden.shape[1])
        grad_bias = hidden.new_empty(len(rows))
        ctx.batch.backward(hidden, weight, scale, grad_hidden, grad_rows, grad_bias)
        return (
            grad_hidden,
            row_gradient(rows, grad_rows, weight, ctx.sparse_grad),
            None if ctx.bias is None else row_gradient(rows, grad_bias, ctx.bias, ctx.sparse_grad),
            None,
            None,
            None,
        )


class _Updates(NamedTuple):
    """The optimiser of a layer's parameters, where it steps within the backward pass."""

    row_updates: Any
    weight: Tensor
    bias: Tensor | None

    def bound(self) -> tuple[Any, Any]:
        """Return ``_core`` optimisers of weight and bias for this moment."""
        bias = None if self.bias is None else self.row_updates.bound(self.bias)
        return self.row_updates.bound(self.weight), bias


def active_log_prob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    tables: Any,
    config: LSH,
    step: int,
    sparse_grad: bool,
    row_updates: Any = None,
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
        row_updates: a :class:`qcompile.optim.row_updates.RowUpdates` to update weight and bias
            within the backward pass, or None to return their gradients.

    Returns:
        float32 [B]. Row-sparse gradients are COO tensors with distinct, ascending rows.
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
    fused = row_updates is not None and torch.is_grad_enabled()
    updates = _Updates(row_updates, weight, bias) if fused else None
    result: Tensor = _ActiveLogProb.apply(hidden, weight, bias, batch, sparse_grad, updates)
    return result
