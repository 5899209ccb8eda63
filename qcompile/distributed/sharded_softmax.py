"""The softmax over classes that several ranks own, as an autograd function.

A softmax needs of each part of its classes only the greatest logit, the sum of exponentials and
the logits of labels; the gradient of a logit then needs the global log-normaliser alone. So ranks
exchange hidden activations, three numbers an example, and the gradients of hidden activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qcompile.distributed.group import Group
from qcompile.nn.row_sparse import late_rows, row_gradient

__all__ = [
    "Examples",
    "Statistics",
    "combine",
    "gather_examples",
    "sharded_log_prob",
    "statistics_of",
]


@dataclass(frozen=True)
class Examples:
    """The examples of all ranks in one step, by rank.

    Args:
        counts: examples of each rank.
        own: this rank's place in the batch.
        hidden: float32 [B, d].
        labels: int64 [B, T], classes over all ranks, padded with -1.
    """

    counts: list[int]
    own: slice
    hidden: Tensor
    labels: Tensor


def gather_examples(group: Group, hidden: Tensor, labels: Tensor) -> Examples:
    """Collect the hidden activations [B_r, d] and labels [B_r, T_r] of all ranks, in one message.

    Labels travel as 32-bit integers beside the activations.
    """
    table = group.table(len(hidden), labels.shape[1])
    counts = [row[0] for row in table]
    width = max(row[1] for row in table)
    start = sum(counts[: group.rank])
    own = slice(start, start + counts[group.rank])
    if group.size == 1:
        return Examples(counts, own, hidden, labels)
    depth = hidden.shape[1]
    packed = torch.full((len(hidden), depth + width), -1, dtype=torch.int32)
    packed[:, :depth] = hidden.detach().view(torch.int32)
    packed[:, depth : depth + labels.shape[1]] = labels
    packed = group.gather(packed, counts)
    everything = packed[:, :depth].contiguous().view(torch.float32)
    return Examples(counts, own, everything, packed[:, depth:].long().contiguous())


class Statistics(NamedTuple):
    """What one rank's classes contribute to the softmax of each example.

    Args:
        top: float32 [B], the greatest logit; -inf without any.
        total: float32 [B], Σ exp(logit − top).
        label_sum: float32 [B], the sum of the logits of labels among these classes.
        label_count: int64 [B], their number.
    """

    top: Tensor
    total: Tensor
    label_sum: Tensor
    label_count: Tensor


def statistics_of(scores: Tensor, labels: Tensor) -> Statistics:
    """Return what classes with these scores [B, N_r] contribute, of labels [B, T] in them."""
    top = scores.max(dim=1).values
    total = torch.exp(scores - top[:, None]).sum(dim=1)
    repeated = (labels[:, :, None] == labels[:, None, :]).tril(-1).any(dim=-1)
    counted = (labels >= 0) & ~repeated
    label_sum = (scores.gather(1, labels.clamp(min=0)) * counted).sum(dim=1)
    return Statistics(top, total, label_sum, counted.sum(dim=1))


def combine(group: Group, part: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Add up what all ranks contribute.

    Returns:
        The mean log-probability of each example's labels, the log-normaliser, both float32 [B],
        and the number of labels, int64 [B].
    """
    top = group.max_(part.top.clone())
    shrink = torch.where(part.total > 0, torch.exp(part.top - top), 0.0)
    sums = group.sum_(torch.stack([part.total * shrink, part.label_sum, part.label_count.float()]))
    log_normaliser = top + sums[0].log()
    count = sums[2].long()
    return sums[1] / sums[2] - log_normaliser, log_normaliser, count


def sharded_log_prob(
    group: Group,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    examples: Examples,
    batch: Any,
    sparse_grad: bool,
    row_updates: Any,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of this rank's examples and the loss over those of all ranks.

    Args:
        group: the ranks.
        hidden: float32 [B_r, d] of this rank, for the gradient.
        weight: [N_r, d] of this rank's classes.
        bias: [N_r] or None.
        examples: of all ranks.
        batch: ``_core.SparseSoftmax`` over ``examples`` and this rank's classes.
        sparse_grad: whether the gradients of weight and bias are row-sparse.
        row_updates: updates weight and bias within ``backward()``, or None.

    Returns:
        float32 [B_r], and minus the mean over all B examples, a scalar that is equal on all ranks.
        Gradients are those of the loss alone, or of what every rank computes of its own
        log-probabilities, added up.
    """
    fused = row_updates is not None and torch.is_grad_enabled()
    call = _Call(group, examples, batch, weight, bias, sparse_grad, row_updates if fused else None)
    result: tuple[Tensor, Tensor] = _ShardedLogProb.apply(hidden, weight, bias, call)
    return result


@dataclass(frozen=True)
class _Call:
    group: Group
    examples: Examples
    batch: Any
    weight: Tensor
    bias: Tensor | None
    sparse_grad: bool
    row_updates: Any

    def late_rows(self) -> tuple[Any, Any]:
        """Return the ``_core`` optimisers of weight and bias for this moment, or None."""
        return late_rows(self.weight, self.row_updates), late_rows(self.bias, self.row_updates)


class _ShardedLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor]:
        late_weight, late_bias = call.late_rows()
        if late_weight is not None:
            call.batch.catch_up(late_weight, late_bias)
        ctx.call = call
        ctx.save_for_backward(weight)
        ctx.set_materialize_grads(False)
        part = call.batch.partial(
            call.examples.hidden, weight.detach(), None if bias is None else bias.detach()
        )
        log_prob, log_normaliser, count = combine(
            call.group, Statistics(*(torch.from_numpy(values) for values in part))
        )
        call.batch.finish(log_normaliser, count)
        return log_prob[call.examples.own].clone(), -log_prob.mean()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_loss: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        hidden = call.examples.hidden
        scale = torch.zeros(len(hidden))
        if grad_output is not None:
            scale += call.group.gather(grad_output, call.examples.counts)
        if grad_loss is not None:
            scale -= grad_loss / len(hidden)
        grad_hidden = torch.empty_like(hidden)
        gradients = _backward(call, ctx.saved_tensors[0].detach(), scale, grad_hidden)
        return call.group.sum_rows(grad_hidden, call.examples.counts), *gradients, None


def _backward(
    call: _Call, weight: Tensor, scale: Tensor, grad_hidden: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Fill ``grad_hidden`` [B, d]; update weight and bias, or return their gradients."""
    hidden = call.examples.hidden
    if call.row_updates is not None:
        call.batch.backward_update(hidden, weight, scale, grad_hidden, *call.late_rows())
        return None, None
    rows = torch.from_numpy(call.batch.rows)
    grad_rows = torch.empty(len(rows), hidden.shape[1])
    grad_bias = torch.empty(len(rows))
    call.batch.backward(hidden, weight, scale, grad_hidden, grad_rows, grad_bias)
    return (
        row_gradient(rows, grad_rows, weight, call.sparse_grad),
        None if call.bias is None else row_gradient(rows, grad_bias, call.bias, call.sparse_grad),
    )
