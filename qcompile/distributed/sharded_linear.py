"""An output layer whose classes are divided among ranks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from qcompile.config import LSH
from qcompile.distributed.best import merge_best
from qcompile.distributed.group import Group
from qcompile.distributed.partition import Partition
from qcompile.distributed.sharded_softmax import (
    Examples,
    Statistics,
    combine,
    gather_examples,
    sharded_log_prob,
    statistics_of,
)
from qcompile.errors import DataError
from qcompile.nn.active_softmax import sample_active
from qcompile.nn.lsh import LSHLinear, LSHOutput
from qcompile.nn.mixed_linear import mixed_linear
from qcompile.nn.targets import check_hidden, label_matrix
from qcompile.uncompiled import uncompiled

__all__ = ["ShardedLSHLinear"]

_BLOCK = 1 << 24  # scores, or random numbers, computed at a time
_SEEDS = 0x9E3779B97F4A7C15  # keeps the random streams of ranks apart


class ShardedLSHLinear(LSHLinear):
    """:class:`qcompile.nn.LSHLinear` over several ranks; each owns a contiguous range of classes.

    Every rank calls it with examples of its own, as many as it likes (none, too, if another has
    some), and gets their log-probabilities, while the loss is the mean over the examples of all
    ranks. Hidden activations and labels are gathered, each rank computes the part of the softmax
    that its classes have in all examples, three numbers an example are reduced, and gradients of
    hidden activations are added up at their owner. Weights, their gradients and the hash tables
    stay where they are. A rank searches its own tables for its share ``active / ranks`` of the
    neurons and draws ``negatives / ranks`` of its own.

    Calls are collectives: all ranks make the same ones, in the same order, in the same mode; only
    without a process group is there nobody to wait for. The sum over ranks of the gradients below
    is the gradient of the loss, see :func:`qcompile.distributed.sum_gradients`; with
    ``torch.nn.parallel.DistributedDataParallel``, which takes the mean, multiply the loss by the
    number of ranks. The weights begin as those of an ``LSHLinear`` made with the same random state.

    In evaluation mode the loss is exact and has no gradient; :meth:`top_k` finds the best classes
    without gathering scores.

    Args:
        in_features: d.
        out_features: N over all ranks.
        bias: whether neurons have a bias.
        config: of the layer as a whole.
        group: the ranks; ``None`` is the default process group.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: Parameter [N_r, d], the rows of classes ``low`` to ``high - 1``.
        bias: Parameter [N_r] or None.
        partition: which rank owns which classes.

    Raises:
        ConfigurationError: there are more ranks than classes.
    """

    sharded = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        config: LSH | None = None,
        group: Group | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Module.__init__(self)
        group = group or Group()
        partition = Partition.of_classes(out_features, group.size)
        rows = partition.sizes[group.rank]
        shard = nn.utils.skip_init(
            nn.Linear, in_features, rows, bias, device=device or "cpu", dtype=dtype
        )
        self._adopt_shard(shard, config or LSH(), group, partition)
        self.reset_parameters()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear | LSHLinear, config: LSH | None = None, group: Group | None = None
    ) -> Self:
        """Make a layer of this rank's rows of ``linear``, which all ranks have, copied."""
        group = group or Group()
        partition = Partition.of_classes(linear.out_features, group.size)
        low, high = partition.range(group.rank)
        shard = nn.utils.skip_init(
            nn.Linear,
            linear.in_features,
            high - low,
            linear.bias is not None,
            dtype=linear.weight.dtype,
        )
        with torch.no_grad():
            shard.weight.copy_(linear.weight[low:high])
            if linear.bias is not None:
                shard.bias.copy_(linear.bias[low:high])
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        config = config or getattr(linear, "config", None) or LSH()
        layer._adopt_shard(shard, config, group, partition)
        return layer.train(linear.training)

    def _adopt_shard(
        self, shard: nn.Linear, config: LSH, group: Group, partition: Partition
    ) -> None:
        self._adopt(shard, _share(config, group))
        self._share = self.config
        self.config = dataclasses.replace(config, where=None)
        self.out_features = partition.total
        self.partition = partition
        self.group = group
        self.low, self.high = partition.range(group.rank)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias as ``LSHLinear`` does; each rank keeps its rows of them."""
        step = max(1, _BLOCK // self.in_features)
        for begin in range(0, self.out_features, step):
            rows = min(step, self.out_features - begin)
            block = self.weight.new_empty(rows, self.in_features)
            nn.init.kaiming_uniform_(block, a=math.sqrt(5))
            low, high = max(begin, self.low), min(begin + rows, self.high)
            if low < high:
                self.weight[low - self.low : high - self.low] = block[low - begin : high - begin]
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            bias = self.bias.new_empty(self.out_features).uniform_(-bound, bound)
            self.bias.copy_(bias[self.low : self.high])
        self._tables.invalidate()

    def forward(self, hidden: Tensor, target: Tensor | None = None) -> Tensor | LSHOutput:
        """Return all scores (no gradient), or with a target its log-probability and the loss.

        Args:
            hidden: floating [..., d], this rank's examples.
            target: int64 [...] or [..., T], padded with -1; numbers of classes over all ranks.

        Returns:
            Scores [..., N], which travel in full (:meth:`top_k` spares that), or an
            :class:`~qcompile.nn.LSHOutput`: this rank's log-probabilities, and the loss over the
            examples of all ranks.

        Raises:
            DataError: as ``LSHLinear``; an empty batch is an error only if all ranks' are.
            DistributedError: another rank has left.
        """
        check_hidden(hidden, self.in_features)
        rows = hidden.reshape(-1, self.in_features).float().contiguous()
        if target is None:
            return self._all_scores(rows).reshape(*hidden.shape[:-1], self.out_features)
        some = len(rows) > 0
        labels = label_matrix(hidden, target, self.out_features) if some else _unlabelled(rows)
        if self.training:
            self._check_trainable(hidden)
        examples = gather_examples(self.group, rows, labels)
        if not len(examples.hidden):
            raise DataError(
                f"{type(self).__name__}: empty batch on every rank; skip batches without examples."
            )
        output, loss = self._trained(rows, examples) if self.training else self._measured(examples)
        return LSHOutput(output.reshape(hidden.shape[:-1]), loss)

    @uncompiled
    def _trained(self, hidden: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        weight = self.weight.contiguous()
        step = self._begin_step(hidden)
        batch = sample_active(
            self._share,
            self._tables.current(weight.detach()),
            examples.hidden,
            self._local(examples.labels),
            len(weight),
            step,
            allow_unlabelled=True,
        )
        result = sharded_log_prob(
            self.group,
            hidden,
            weight,
            self.bias,
            examples,
            batch,
            self.sparse_grad,
            self.row_updates,
        )
        self._end_step()
        return result

    @torch.no_grad()
    def _measured(self, examples: Examples) -> tuple[Tensor, Tensor]:
        labels = self._local(examples.labels)
        parts = [
            statistics_of(self._scores(examples.hidden[rows]), labels[rows])
            for rows in self._blocks(len(labels))
        ]
        part = Statistics(*(torch.cat(values) for values in zip(*parts, strict=True)))
        log_prob, _, _ = combine(self.group, part)
        return log_prob[examples.own], -log_prob.mean()

    @torch.no_grad()
    def top_k(
        self,
        hidden: Tensor,
        k: int,
        scan: Callable[[Tensor, int], tuple[Any, Any]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the classes with the highest scores, best first, for this rank's examples.

        Args:
            hidden: floating [..., d].
            k: how many, at most N and the same on all ranks.
            scan: finds the k best of this rank's classes [B, k], numbered from 0, for hidden
                float32 [B, d]; computes all scores by default.

        Returns:
            Scores float32 [..., k] and classes int64 [..., k].

        Raises:
            DataError: ``k`` is out of range.
        """
        check_hidden(hidden, self.in_features)
        if not 1 <= k <= self.out_features:
            raise DataError(f"top_k: k must be in [1, {self.out_features}], got {k!r}.")
        rows = hidden.reshape(-1, self.in_features).float().contiguous()
        examples = gather_examples(self.group, rows, _unlabelled(rows))
        scores, classes = self._own_best(examples.hidden, min(k, self.high - self.low), scan)
        best = merge_best(self.group, examples.counts, scores, classes + self.low, k)
        found, numbers = (part.reshape(*hidden.shape[:-1], k) for part in best)
        return found, numbers

    def _own_best(
        self, hidden: Tensor, k: int, scan: Callable[[Tensor, int], tuple[Any, Any]] | None
    ) -> tuple[Tensor, Tensor]:
        if not len(hidden):
            return hidden.new_empty(0, k), torch.empty(0, k, dtype=torch.int64)
        if scan is not None:
            scores, classes = scan(hidden, k)
            return torch.as_tensor(scores), torch.as_tensor(classes)
        best = [self._scores(hidden[rows]).topk(k) for rows in self._blocks(len(hidden))]
        return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities of all classes, [..., N], for hidden [..., d]."""
        return torch.log_softmax(self.forward(hidden), dim=-1)  # type: ignore[arg-type]

    def predict(self, hidden: Tensor) -> Tensor:
        """Return the class with the highest score, int64 [...], for hidden [..., d]."""
        return self.top_k(hidden, 1)[1].squeeze(-1)

    @torch.no_grad()
    def _all_scores(self, hidden: Tensor) -> Tensor:
        examples = gather_examples(self.group, hidden, _unlabelled(hidden))
        own, sizes = len(hidden), self.partition.sizes
        send = [count * (self.high - self.low) for count in examples.counts]
        scores = self._scores(examples.hidden).reshape(-1)
        parts = self.group.exchange(scores, send, [own * size for size in sizes])
        blocks = parts.split([own * size for size in sizes])
        return torch.cat([b.view(own, size) for b, size in zip(blocks, sizes, strict=True)], dim=1)

    def _scores(self, hidden: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return mixed_linear(hidden, self.weight, self.bias)

    def _blocks(self, examples: int) -> list[slice]:
        step = max(1, _BLOCK // (self.high - self.low))
        return [slice(begin, begin + step) for begin in range(0, examples, step)]

    def _local(self, labels: Tensor) -> Tensor:
        """Number labels [B, T] within this rank's classes; others become padding."""
        here = (labels >= self.low) & (labels < self.high)
        return torch.where(here, labels - self.low, -1)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "ShardedLSHLinear is bound to its ranks and cannot be copied or pickled; take its "
            "state_dict(), or make it a layer of one process with qcompile.distributed.collect."
        )

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"{super().extra_repr()}, classes {self.low} to {self.high - 1} here"


def _share(config: LSH, group: Group) -> LSH:
    """Return what one rank does of the work; a lonely one does all."""
    return dataclasses.replace(
        config,
        active=-(-config.active // group.size),
        negatives=-(-config.negatives // group.size),
        seed=(config.seed + group.rank * _SEEDS) % 2**64,
        where=None,
    )


def _unlabelled(rows: Tensor) -> Tensor:
    return torch.full((len(rows), 1), -1, dtype=torch.int64)
