"""Optimisers for row-sparse gradients."""

from qcompile.optim.adam import Adam, AdamW, SparseAdam
from qcompile.optim.pending import catch_up, owed
from qcompile.optim.row_updates import RowUpdates
from qcompile.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RowUpdates", "SparseAdam", "catch_up", "owed"]
