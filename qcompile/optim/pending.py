"""Which optimiser still owes a parameter the momentum of its idle rows."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["catch_up", "owe", "owed"]


class _Owing(Protocol):
    def flush(self) -> None: ...
    def bind(self, parameter: Tensor) -> Any: ...
    def settle(self, parameter: Tensor) -> None: ...


_owing: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def owe(parameter: Tensor, optimizer: _Owing) -> None:
    """Note that ``optimizer`` updates rows of ``parameter`` late; another that did so settles."""
    before = _optimizer_of(parameter)
    if before is not None and before is not optimizer:
        before.settle(parameter)
    _owing[parameter] = weakref.ref(optimizer)


def _optimizer_of(parameter: Tensor) -> _Owing | None:
    reference = _owing.get(parameter)
    return None if reference is None else reference()


def catch_up(parameters: Iterable[Tensor]) -> None:
    """Flush the optimisers that owe any of these parameters, all their parameters included."""
    for parameter in parameters:
        optimizer = _optimizer_of(parameter)
        if optimizer is not None:
            optimizer.flush()


def owed(parameter: Tensor) -> Any:
    """Return the ``_core.RowOptimizer`` with which rows of ``parameter`` catch up, or None.

    For a forward that reads a few rows: those catch up first, and all others stay late. Rows that
    an earlier forward has read do not change before the next step, and so neither does the
    parameter's version.
    """
    optimizer = _optimizer_of(parameter)
    return None if optimizer is None else optimizer.bind(parameter)
