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
from qcompile.nn.row_sparse import late_rows, row_gradient
from qcompile.runtime import _core

__all__ = ["active_log_prob", "sample_active"]


def sample_active(
    config: LSH,
    tables: Any,
    hidden: Tensor,
    labels: Tensor,
    neurons: int,
    step: int,
    *,
    allow_unlabelled: bool = False,
) -> Any:
    """Choose the active neurons of a batch.

    Args:
        config: mode, how many neurons to activate and how they are chosen.
        tables: a built ``_core.LshTables`` over the neurons, or None.
        hidden: float32 [B, d], contiguous.
        labels: int64 [B, T], contiguous, padded with -1.
        neurons: N.
        step: counts training steps; selects the random numbers.
        allow_unlabelled: whether an example may have no label.

    Returns:
        A ``_core.SparseSoftmax``.
    """
    return _core.SparseSoftmax(
        tables,
        hidden,
        labels,
        neurons,
        config.active,
        config.negatives,
        config.seed,
        step,
        torch.get_num_threads(),
        mode=config.mode,
        sampling=config.sampling,
        threshold=config.threshold,
        accumulation=config.accumulation,
        allow_unlabelled=allow_unlabelled,
    )


class _ActiveLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batch: Any,
        sparse_grad: bool,
        row_updates: Any,
    ) -> Tensor:
        late_weight, late_bias = (late_rows(p, row_updates) for p in (weight, bias))
        if late_weight is not None:
            batch.catch_up(late_weight, late_bias)
        ctx.batch, ctx.row_updates, ctx.sparse_grad = batch, row_updates, sparse_grad
        ctx.parameters = weight, bias
        ctx.save_for_backward(hidden, weight)
        bias = None if bias is None else bias.detach()
        return torch.from_numpy(batch.forward(hidden.detach(), weight.detach(), bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        scale = scale.contiguous()
        grad_hidden = torch.empty_like(hidden)
        bias = ctx.parameters[1]
        if ctx.row_updates is not None:
            bound = (late_rows(parameter, ctx.row_updates) for parameter in ctx.parameters)
            ctx.batch.backward_update(hidden, weight, scale, grad_hidden, *bound)
            return grad_hidden, None, None, None, None, None
        rows = torch.from_numpy(ctx.batch.rows)
        grad_rows = hidden.new_empty(len(rows), hidden.shape[1])
        grad_bias = hidden.new_empty(len(rows))
        ctx.batch.backward(hidden, weight, scale, grad_hidden, grad_rows, grad_bias)
        return (
            grad_hidden,
            row_gradient(rows, grad_rows, weight, ctx.sparse_grad),
            None if bias is None else row_gradient(rows, grad_bias, bias, ctx.sparse_grad),
            None,
            None,
            None,
        )


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
        weight: float32 or bfloat16 [N, d], contiguous.
        bias: [N] of the same type, or None.
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
    batch = sample_active(config, tables, hidden.detach(), labels, weight.shape[0], step)
    if not torch.is_grad_enabled():
        row_updates = None
    result: Tensor = _ActiveLogProb.apply(hidden, weight, bias, batch, sparse_grad, row_updates)
    return result
