"""Which optimiser still owes a parameter the momentum of its idle rows."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["catch_up", "owe"]


class _Flushable(Protocol):
    def flush(self) -> None: ...


_owing: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def owe(parameter: Tensor, optimizer: _Flushable) -> None:
    """Note that ``optimizer`` updates rows of ``parameter`` late."""
    _owing[parameter] = weakref.ref(optimizer)


def catch_up(parameters: Iterable[Tensor]) -> None:
    """Flush the optimisers that owe any of these parameters, all their parameters included."""
    for parameter in parameters:
        reference = _owing.get(parameter)
        optimizer = reference() if reference is not None else None
        if optimizer is not None:
            optimizer.flush()
