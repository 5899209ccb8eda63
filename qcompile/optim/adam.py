"""Adam for dense and row-sparse gradients alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.adam import adam
from torch.optim.optimizer import Optimizer, ParamsT

from qcompile.errors import ConfigurationError, DataError
from qcompile.optim.pending import owe
from qcompile.runtime import _core

__all__ = ["Adam"]


class Adam(Optimizer):
    """``torch.optim.Adam`` that also takes row-sparse gradients, and computes the same with them.

    Such gradients come from ``nn.Embedding(sparse=True)`` and from
    :class:`qcompile.nn.LSHLinear`. Dense Adam moves every row at every step, since momentum goes
    on without a gradient; here a row that gets none is left alone and catches up, in closed form
    and with the learning rates of the steps that it missed, when it is next touched.
    A forward in between sees it without those late steps.

    All rows catch up, and the weights are those of dense Adam, after :meth:`flush`,
    ``state_dict()``, a dense gradient, 1,024 steps, and when an :class:`~qcompile.nn.LSHLinear`
    that this optimiser trains is put into evaluation mode or saved.

    State dictionaries have the entries of ``torch.optim.Adam``'s and can be exchanged with them.

    Row-sparse gradients need contiguous float32 parameters on the CPU. With ``weight_decay``, which
    gives every row a gradient, they are made dense first.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradients and of their squares.
        eps: added to the denominator.
        weight_decay: factor of the weights that is added to their gradient (not decoupled).

    Raises:
        ConfigurationError: a value is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        # The groups have torch.optim.Adam's entries, so that state dictionaries fit both.
        self._late: dict[Tensor, Any] = {}
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own if wanted."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        beta1, beta2 = group["betas"]
        if not (0 <= beta1 < 1 and 0 < beta2 < 1):
            raise ConfigurationError(
                f"Adam: betas must be in [0, 1) and (0, 1), got {group['betas']!r}."
            )
        for name in ("lr", "eps", "weight_decay"):
            if not group[name] >= 0:
                raise ConfigurationError(f"Adam: {name} must be at least 0, got {group[name]!r}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What ``closure`` returned.

        Raises:
            DataError: a row-sparse gradient belongs to a parameter that rows cannot be updated of.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense: list[Tensor] = []
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse and group["weight_decay"] == 0:
                    self._step_rows(parameter, gradient, group)
                else:
                    dense.append(parameter)
            self._step_dense(dense, group)
        return loss

    @torch.no_grad()
    def flush(self) -> None:
        """Let every idle row catch up with the steps that it missed."""
        for parameter in list(self._late):
            self._settle(parameter)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after all rows have caught up; see ``torch.optim.Optimizer``."""
        self.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replace the state, by one of this class or of ``torch.optim.Adam``."""
        self._late.clear()
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._late = {}

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            self._settle(parameter)
        states = [self._state_of(parameter) for parameter in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        beta1, beta2 = group["betas"]
        adam(
            parameters,
            [g.to_dense() if g.is_sparse else g for g in gradients],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        _check_rows(parameter, gradient)
        state = self._state_of(parameter)
        late = self._late.get(parameter)
        if late is None:
            late = _core.RowAdam(len(parameter), int(state["step"].item()))
            self._late[parameter] = late
            owe(parameter, self)
        late.step(
            *self._matrices(parameter),
            gradient._indices()[0].contiguous(),
            _matrix(gradient._values().contiguous()),
            float(group["lr"]),
            *group["betas"],
            group["eps"],
            torch.get_num_threads(),
        )
        state["step"] += 1
        increment_version(parameter)

    def _settle(self, parameter: Tensor) -> None:
        late = self._late.pop(parameter, None)
        if late is not None:
            late.flush(*self._matrices(parameter), torch.get_num_threads())
            increment_version(parameter)

    def _matrices(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View the parameter and its moments as matrices of rows."""
        state = self.state[parameter]
        return (
            _matrix(parameter.detach()),
            _matrix(state["exp_avg"]),
            _matrix(state["exp_avg_sq"]),
        )


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.view(len(tensor), -1) if len(tensor) else tensor.reshape(0, 1)


def _check_rows(parameter: Tensor, gradient: Tensor) -> None:
    plain = parameter.dtype == torch.float32 and parameter.device.type == "cpu"
    if not (plain and parameter.is_contiguous() and gradient.dtype == torch.float32):
        raise DataError(
            f"Adam: a row-sparse gradient ({gradient.dtype}) needs a contiguous float32 parameter "
            f"on the CPU, but the parameter {list(parameter.shape)} is {parameter.dtype} on "
            f"{parameter.device}; use dense gradients there (sparse=False, sparse_grad=False)."
        )
    if gradient.sparse_dim() != 1:
        raise DataError(
            f"Adam: the gradient of the parameter {list(parameter.shape)} is sparse in "
            f"{gradient.sparse_dim()} axes; only the first may be."
        )
