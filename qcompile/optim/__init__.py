"""Optimisers for row-sparse gradients."""

from qcompile.optim.adam import Adam, AdamW
from qcompile.optim.pending import catch_up, owed
from qcompile.optim.row_updates import RowUpdates
from qcompile.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RowUpdates", "catch_up", "owed"]
