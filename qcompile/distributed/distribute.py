"""Making a model's layers those of a distributed run."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from qcompile.distributed.group import Group
from qcompile.distributed.layers import swap_layers
from qcompile.distributed.sharded_linear import ShardedLSHLinear
from qcompile.distributed.sparse_input import ReplicatedSparseLinear
from qcompile.errors import ConfigurationError
from qcompile.nn.lsh import LSHLinear
from qcompile.nn.sparse_linear import SparseLinear

__all__ = ["distribute"]

_Module = TypeVar("_Module", bound=nn.Module)


def distribute(model: _Module, group: Group) -> _Module:
    """Shard every ``LSHLinear`` of a model and let every ``SparseLinear`` learn from all ranks.

    The model must be the same on all ranks. It is changed in place (a model that is itself such a
    layer is replaced); make the optimiser afterwards, as sharded layers have new parameters. An
    output layer too large for one machine is better made as a :class:`ShardedLSHLinear` at once.

    Args:
        model: what every rank has made alike.
        group: the ranks.

    Returns:
        The model.

    Raises:
        ConfigurationError: a layer keeps statistics of batches, which would drift apart.
    """
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False):
            raise ConfigurationError(
                f"{name or type(module).__name__} ({type(module).__name__}) keeps statistics of "
                "the batches of one rank; use LayerNorm or GroupNorm, or "
                "track_running_stats=False."
            )
    return swap_layers(model, lambda module: _replacement(module, group))


def _replacement(module: nn.Module, group: Group) -> nn.Module | None:
    if isinstance(module, ShardedLSHLinear | ReplicatedSparseLinear):
        return None
    if isinstance(module, LSHLinear):
        return ShardedLSHLinear.from_linear(module, group=group)
    if isinstance(module, SparseLinear):
        return ReplicatedSparseLinear(module, group)
    return None
