"""Adam and AdamW for dense and row-sparse gradients alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from qcompile.errors import ConfigurationError
from qcompile.optim.row_optimizer import RowOptimizer
from qcompile.runtime import _core

__all__ = ["Adam", "AdamW", "SparseAdam"]


class Adam(RowOptimizer):
    """``torch.optim.Adam`` that also takes row-sparse gradients, and computes the same with them.

    Such gradients come from ``nn.Embedding(sparse=True)`` and from the layers of
    :mod:`qcompile.nn`. Dense Adam moves every row at every step, since momentum goes on without a
    gradient; here a row that gets none is left alone and catches up, in closed form and with the
    learning rates of the steps that it missed, when it is next touched. The layers of
    :mod:`qcompile.nn` let the rows that they are going to read catch up first; other forwards see
    a row without those late steps.

    All rows catch up, and the weights are those of dense Adam, after :meth:`flush`,
    ``state_dict()``, a dense gradient, 1,024 steps, and when a layer of :mod:`qcompile.nn` that
    this optimiser trains is put into evaluation mode or saved.

    State dictionaries have the entries of ``torch.optim.Adam``'s and can be exchanged with them.

    Row-sparse gradients need contiguous float32 or bfloat16 parameters on the CPU. A bfloat16
    parameter then is the upper half of a float32 whose lower half is in the state, ``residual``,
    and its moments are bfloat16, rounded at random such that small changes add up: 8 bytes a
    weight instead of 12, and steps as exact as in float32 but for some noise in the moments. The
    random numbers depend on step and place alone.

    With ``weight_decay`` that is not decoupled, which gives every row a gradient, row-sparse
    gradients are made dense first.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradients and of their squares.
        eps: added to the denominator.
        weight_decay: factor of the weights that is added to their gradient; or, decoupled, of
            which ``lr`` times as much is taken off the weights at each step.
        decoupled_weight_decay: makes it :class:`AdamW`.

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
        decoupled_weight_decay: bool = False,
    ) -> None:
        # The groups have torch.optim.Adam's entries, so that state dictionaries fit both.
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("decoupled_weight_decay", False)

    def _check_group(self, group: dict[str, Any]) -> None:
        name = type(self).__name__
        beta1, beta2 = group["betas"]
        if not (0 <= beta1 < 1 and 0 < beta2 < 1):
            raise ConfigurationError(
                f"{name}: betas must be in [0, 1) and (0, 1), got {group['betas']!r}."
            )
        for key in ("lr", "eps", "weight_decay"):
            if not group[key] >= 0:
                raise ConfigurationError(f"{name}: {key} must be at least 0, got {group[key]!r}.")

    def _takes_rows(self, group: dict[str, Any]) -> bool:
        return group["weight_decay"] == 0 or group["decoupled_weight_decay"]

    def _averages(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _new_rows(self, rows: int, steps: int) -> Any:
        return _core.RowAdam(rows, steps)

    def _rates(self, group: dict[str, Any]) -> tuple[float, ...]:
        decay = float(group["weight_decay"]) if group["decoupled_weight_decay"] else 0.0
        return float(group["lr"]), *group["betas"], group["eps"], decay

    def _bind_rows(
        self,
        late: Any,
        value: Tensor,
        residual: Tensor | None,
        averages: list[Tensor],
        rates: tuple[float, ...],
    ) -> Any:
        return late.bind(value, residual, *averages, *rates)

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state_of(parameter, group) for parameter in parameters]
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
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=group["decoupled_weight_decay"],
        )


class AdamW(Adam):
    """:class:`Adam` with decoupled weight decay, as ``torch.optim.AdamW``.

    Idle rows decay, too, and in closed form.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradients and of their squares.
        eps: added to the denominator.
        weight_decay: ``lr`` times as much of the weights is taken off them at each step.

    Raises:
        ConfigurationError: a value is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


class SparseAdam(Adam):
    """Lazy Adam: a row without a gradient stays as it is, its moments too.

    It computes with row-sparse gradients what ``torch.optim.SparseAdam`` does, but for ``eps``,
    which is added after the correction of the bias as in :class:`Adam`. A step costs less than
    Adam's, since no row has anything to catch up with, and moves rare rows less: a row's momentum
    acts only in the steps that touch it. Weights are up to date at any time.

    Dense gradients take :class:`Adam`'s step.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradients and of their squares, per step that touches a
            row.
        eps: added to the denominator.

    Raises:
        ConfigurationError: a value is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr, betas, eps)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["weight_decay"] != 0:
            raise ConfigurationError(
                "SparseAdam: weight_decay must be 0, since idle rows stay as they are; AdamW "
                f"decays them, too. Got {group['weight_decay']!r}."
            )

    def _new_rows(self, rows: int, steps: int) -> Any:
        return _core.RowAdam(rows, steps, rest=True)
