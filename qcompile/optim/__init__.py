"""Optimisers for row-sparse gradients."""

from qcompile.optim.adam import Adam
from qcompile.optim.pending import catch_up

__all__ = ["Adam", "catch_up"]
