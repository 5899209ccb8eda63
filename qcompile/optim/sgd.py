"""Stochastic gradient descent for dense and row-sparse gradients alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from qcompile.errors import ConfigurationError
from qcompile.optim.row_optimizer import RowOptimizer
from qcompile.runtime import _core

__all__ = ["SGD"]


class SGD(RowOptimizer):
    """``torch.optim.SGD`` that leaves idle rows alone, with momentum and weight decay, too.

    torch's takes row-sparse gradients, but not with weight decay. Here idle rows catch up as they
    do in :class:`~qcompile.optim.Adam`, which see for when, for the storage of parameters and for
    state dictionaries: an idle step is linear in weight and momentum, so that any number of them
    is one 2 by 2 matrix. Without momentum and weight decay idle rows have nothing to catch up with.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: part of the last movement that is repeated.
        weight_decay: factor of the weights that is added to their gradient.

    Raises:
        ConfigurationError: a value is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        # dampening and nesterov are there for torch.optim.SGD to load.
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "dampening": 0,
            "nesterov": False,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        for key in ("lr", "momentum", "weight_decay"):
            if not group[key] >= 0:
                raise ConfigurationError(f"SGD: {key} must be at least 0, got {group[key]!r}.")

    def _takes_rows(self, group: dict[str, Any]) -> bool:
        return True

    def _averages(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[str, ...]:
        kept = group["momentum"] or state.get("momentum_buffer") is not None
        return ("momentum_buffer",) if kept else ()

    def _new_rows(self, rows: int, steps: int) -> Any:
        return _core.RowSgd(rows, steps)

    def _rates(self, group: dict[str, Any]) -> tuple[float, ...]:
        return float(group["lr"]), float(group["momentum"]), float(group["weight_decay"])

    def _bind_rows(
        self,
        late: Any,
        value: Tensor,
        residual: Tensor | None,
        averages: list[Tensor],
        rates: tuple[float, ...],
    ) -> Any:
        buffer = averages[0] if averages else None
        return late.bind(value, residual, buffer, *rates)

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        states = [self._state_of(parameter, group) for parameter in parameters]
        buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in states]
        sgd(
            parameters,
            [g.to_dense() if g.is_sparse else g for g in gradients],
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=float(group["lr"]),
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        for state in states:
            state["step"] += 1
