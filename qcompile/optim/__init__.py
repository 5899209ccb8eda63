"""Optimisers for row-sparse gradients, and settings for the quadratic terms of a network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qcompile.optim.adam import Adam, AdamW, SparseAdam
from qcompile.optim.pending import catch_up, owed
from qcompile.optim.row_updates import RowUpdates
from qcompile.optim.sgd import SGD

if TYPE_CHECKING:
    from qcompile.optim.quadratic import QuadraticWarmup as QuadraticWarmup
    from qcompile.optim.quadratic import quadratic_groups as quadratic_groups
    from qcompile.optim.quadratic import quadratic_parameters as quadratic_parameters
    from qcompile.optim.quadratic import shrink as shrink

_QUADRATIC = ("QuadraticWarmup", "quadratic_groups", "quadratic_parameters", "shrink")

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "RowUpdates",
    "SparseAdam",
    "catch_up",
    "owed",
    *_QUADRATIC,
]


def __getattr__(name: str) -> Any:
    if name in _QUADRATIC:  # they know the layers of qcompile.nn, which know this package
        return getattr(importlib.import_module("qcompile.optim.quadratic"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
