"""Parameters that are updated while the backward pass runs."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import Tensor
from torch.autograd.graph import increment_version

from qcompile.errors import ConfigurationError

__all__ = ["RowUpdates"]


class _Binds(Protocol):
    def bind(self, parameter: Tensor) -> Any: ...


class RowUpdates:
    """What ``step_in_backward`` of an optimiser gives a layer, as ``layer.row_updates``.

    The layer's forward binds each parameter and lets the rows that it is going to read catch up;
    its backward binds them again, for the rates of that moment, and hands the gradients to
    ``step`` of the C++ core instead of returning them.

    It holds the optimiser weakly, and copies and pickles of it are None: the copy of a layer has
    parameters that the optimiser does not train.
    """

    def __init__(self, optimizer: _Binds) -> None:
        self._optimizer = weakref.ref(optimizer)

    def bound(self, parameter: Tensor) -> Any:
        """Return the ``_core.RowOptimizer`` of ``parameter`` for this training step.

        The parameter counts as modified in place from here on.

        Raises:
            ConfigurationError: the optimiser is gone, or does not train the parameter by rows.
            DataError: the parameter or its state is not what rows can be updated of.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise ConfigurationError(
                "row_updates: the optimiser that updated this layer in its backward pass no longer "
                "exists; call step_in_backward of the new one, or set row_updates = None."
            )
        bound = optimizer.bind(parameter)
        increment_version(parameter)
        return bound

    def __reduce__(self) -> tuple[Any, ...]:
        return _none, ()


def _none() -> None:
    return None
