"""Training on several processes or machines: output classes sharded, the rest replicated.

Start with ``torchrun``; the ranks talk through ``torch.distributed`` with gloo. docs/scaling.md has
the design, the bytes of a step and what limits it.
"""

from qcompile.distributed.collect import collect
from qcompile.distributed.distribute import distribute
from qcompile.distributed.gradients import check_replicas, sum_gradients
from qcompile.distributed.group import Group
from qcompile.distributed.partition import Partition
from qcompile.distributed.sharded_linear import ShardedLSHLinear
from qcompile.distributed.sparse_input import ReplicatedSparseLinear
from qcompile.distributed.start import after_first, agree, launched, ranks

__all__ = [
    "Group",
    "Partition",
    "ReplicatedSparseLinear",
    "ShardedLSHLinear",
    "after_first",
    "agree",
    "check_replicas",
    "collect",
    "distribute",
    "launched",
    "ranks",
    "sum_gradients",
]
