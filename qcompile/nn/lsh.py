"""A huge output layer that trains on the few neurons that matter to an example.

The neurons are found by locality-sensitive hashing: SLIDE (Chen et al., MLSys 2020), with a
uniform sample standing for the rest, weighted so that the softmax is estimated without bias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qcompile.nn.active_softmax import active_log_prob
from qcompile.nn.hashed_linear import HashedLinear
from qcompile.nn.mixed_linear import mixed_linear
from qcompile.nn.targets import check_hidden, label_matrix
from qcompile.uncompiled import uncompiled

__all__ = ["LSHLinear", "LSHOutput"]


class LSHOutput(NamedTuple):
    """What a call with a target returns, as ``torch.nn.AdaptiveLogSoftmaxWithLoss`` does.

    Args:
        output: float [...]: log-probability of each example's label; with several labels an
            example, the mean over them, since each gets an equal share of the target's mass.
        loss: scalar, ``-output.mean()``.
    """

    output: Tensor
    loss: Tensor


class LSHLinear(HashedLinear):
    """A linear output layer ``[..., d] -> [..., N]`` with LSH-sparse training.

    Without a target it is ``torch.nn.Linear``. With a target it returns a log-probability and a
    loss, computed exactly over all N neurons in evaluation mode. In training mode each example
    activates its labels, up to ``config.active`` neurons that collide with its hidden activations
    in the hash tables, and ``config.negatives`` neurons that are drawn uniformly for the whole
    batch and weighted to stand for all others; the cost no longer grows with N. With
    ``config.active >= N`` that is exact, too. ``mode="sampled"`` does without tables;
    ``mode="full"`` is the exact softmax over all N neurons, in blocks.

    The gradients of weight and bias are then row-sparse. An optimiser of :mod:`qcompile.optim`
    takes them, as its own step or, with ``step_in_backward``, before they reach memory; so do
    ``torch.optim.SGD``, ``SparseAdam`` and ``Adagrad``. Set ``sparse_grad = False`` for dense
    gradients and any optimiser, at a cost that grows with N.

    Hash tables follow the weights on a schedule, see :class:`qcompile.nn.hashed.Hashed`; a
    training step is a call with a target in training mode. Results depend on ``config.seed``, not
    on the number of threads, unless ``config.accumulation`` is ``async``.

    Training runs on the CPU with parameters in float32 or bfloat16, and computes in float32; hidden
    activations of other floating types, autocast's included, are cast.

    Args:
        in_features: d, the width of the hidden activations.
        out_features: N, the number of neurons.
        bias: whether neurons have a bias.
        config: hash family, tables and sampling.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: Parameter [N, d].
        bias: Parameter [N] or None.
        config: as given.
        sparse_grad: whether weight and bias get row-sparse gradients in training; True.
    """

    def forward(self, hidden: Tensor, target: Tensor | None = None) -> Tensor | LSHOutput:
        """Return all scores, or with a target its log-probability and the loss.

        Args:
            hidden: floating [..., d].
            target: int64 [...], one label an example, or [..., T], several, padded with -1.

        Returns:
            Scores [..., N], or an :class:`LSHOutput`.

        Raises:
            DataError: ``hidden`` or ``target`` has the wrong type, shape or range, the batch is
                empty, or training is asked for off the CPU or with parameters of another type.
        """
        check_hidden(hidden, self.in_features)
        if target is None:
            return mixed_linear(hidden, self.weight, self.bias)
        labels = label_matrix(hidden, target, self.out_features)
        rows = hidden.reshape(-1, self.in_features)
        log_prob = self._sampled(rows, labels) if self.training else self._exact(rows, labels)
        output = log_prob.reshape(hidden.shape[:-1])
        return LSHOutput(output, -output.mean())

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities of all neurons, [..., N], for hidden [..., d]."""
        check_hidden(hidden, self.in_features)
        return F.log_softmax(mixed_linear(hidden, self.weight, self.bias), dim=-1)

    def predict(self, hidden: Tensor) -> Tensor:
        """Return the neuron with the highest score, int64 [...], for hidden [..., d]."""
        check_hidden(hidden, self.in_features)
        return mixed_linear(hidden, self.weight, self.bias).argmax(dim=-1)

    def _exact(self, hidden: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            scores = mixed_linear(hidden.float(), self.weight, self.bias)
        log_prob = F.log_softmax(scores, dim=-1)
        labels = labels.to(hidden.device)
        share = _first_occurrences(labels).to(log_prob.dtype)
        share = share / share.sum(dim=-1, keepdim=True)
        return (log_prob.gather(1, labels.clamp(min=0)) * share).sum(dim=-1)

    @uncompiled
    def _sampled(self, hidden: Tensor, labels: Tensor) -> Tensor:
        self._check_trainable(hidden)
        hidden = hidden.float().contiguous()
        weight = self.weight.contiguous()
        step = self._begin_step(hidden)
        output = active_log_prob(
            hidden,
            weight,
            None if self.bias is None else self.bias.contiguous(),
            labels,
            self._tables.current(weight.detach()),
            self.config,
            step,
            self.sparse_grad,
            self.row_updates,
        )
        self._end_step()
        return output

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        c = self.config
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, family={c.family}, tables={c.tables}, "
            f"hashes={c.hashes_for(self.out_features)}, active={c.active}, negatives={c.negatives}"
        )


def _first_occurrences(labels: Tensor) -> Tensor:
    """Mark the labels [B, T] that are no padding and no repetition within their example."""
    repeated = (labels[:, :, None] == labels[:, None, :]).tril(-1).any(dim=-1)
    return (labels >= 0) & ~repeated
