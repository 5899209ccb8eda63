"""Bringing a distributed model back into one process."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from qcompile.distributed.group import Group
from qcompile.distributed.layers import swap_layers
from qcompile.distributed.partition import Partition
from qcompile.distributed.sharded_linear import ShardedLSHLinear
from qcompile.distributed.sparse_input import ReplicatedSparseLinear
from qcompile.nn.lsh import LSHLinear

__all__ = ["collect"]

_Module = TypeVar("_Module", bound=nn.Module)
_STRETCH = 1 << 26  # bytes that a rank sends at a time


def collect(model: _Module, group: Group) -> _Module:
    """Undo :func:`distribute` on the first rank; a collective.

    Its layers become those of one process (``LSHLinear``, ``SparseLinear``), with all rows, which
    must fit into its memory; on other ranks the model stays as it is. Optimisers of the sharded
    parameters do not train the new ones.

    Args:
        model: is changed in place.
        group: the ranks.

    Returns:
        The model.
    """
    return swap_layers(model, lambda module: _whole(module, group))


def _whole(module: nn.Module, group: Group) -> nn.Module | None:
    if isinstance(module, ReplicatedSparseLinear):
        return module.alone() if group.rank == 0 else None
    if not isinstance(module, ShardedLSHLinear):
        return None
    schedule = module.get_extra_state()
    weight = _on_first(module.weight, module.partition, group)
    bias = None if module.bias is None else _on_first(module.bias, module.partition, group)
    if weight is None:
        return None
    linear = nn.Linear(module.in_features, module.out_features, bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    linear.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]
    layer = LSHLinear.from_linear(linear, module.config).train(module.training)
    layer.set_extra_state(schedule)
    return layer


def _on_first(shard: Tensor, partition: Partition, group: Group) -> Tensor | None:
    """Put the rows of all ranks together on the first one."""
    if group.size == 1:
        return shard.detach()
    first = group.rank == 0
    rows = shard.detach().reshape(len(shard), -1).view(torch.uint8)
    whole = rows.new_empty(partition.total, rows.shape[1]) if first else None
    step = max(1, _STRETCH // rows.shape[1])
    for begin in range(0, max(partition.sizes), step):
        counts = [max(0, min(step, size - begin)) for size in partition.sizes]
        send = [counts[group.rank]] + [0] * (group.size - 1)
        receive = counts if first else [0] * group.size
        parts = group.exchange(rows[begin : begin + step], send, receive)
        if whole is not None:
            for (low, _), part in zip(partition.ranges, parts.split(counts), strict=True):
                whole[low + begin : low + begin + len(part)] = part
    if whole is None:
        return None
    return whole.view(shard.dtype).reshape(partition.total, *shard.shape[1:])
