"""Datasets with sparse features and huge label sets: readers, tasks that install, metrics."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.data.reader import read_dataset as read_dataset
    from qcompile.data.sparse_dataset import SparseBatch as SparseBatch
    from qcompile.data.sparse_dataset import SparseDataset as SparseDataset
    from qcompile.data.writer import write_xmc as write_xmc

# A server that encodes its inputs by a module of this package needs none of these.
_LAZY = {
    "SparseBatch": "qcompile.data.sparse_dataset",
    "SparseDataset": "qcompile.data.sparse_dataset",
    "read_dataset": "qcompile.data.reader",
    "write_xmc": "qcompile.data.writer",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
