"""What optimisers for dense and row-sparse gradients share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, ParamsT

from qcompile.errors import ConfigurationError, DataError
from qcompile.optim.pending import owe
from qcompile.optim.row_updates import RowUpdates
from qcompile.runtime.memory import huge_pages
from qcompile.uncompiled import uncompiled

__all__ = ["RowOptimizer"]

_UNSUPPORTED = ("amsgrad", "maximize", "nesterov", "dampening", "capturable", "differentiable")


def _light(method: Callable[..., Any]) -> Callable[..., Any]:
    # torch keeps these from being compiled in a way that loads its compiler.
    return uncompiled(getattr(method, "__wrapped__", method))


_add_param_group = _light(Optimizer.add_param_group)
_state_dict = _light(Optimizer.state_dict)
_load_state_dict = _light(Optimizer.load_state_dict)


class RowOptimizer(Optimizer):
    """Base: rows without a gradient are left alone and catch up, exactly, when it matters."""

    # Per parameter, a _core.RowAdam or RowSgd: the steps that each of its rows has followed.
    _late: dict[Tensor, Any] = MappingProxyType({})  # type: ignore[assignment]
    # Per parameter, what its latest binding depends on and the binding, which takes long to make.
    _bound: dict[Tensor, tuple[Any, Any]] = MappingProxyType({})  # type: ignore[assignment]

    zero_grad = _light(Optimizer.zero_grad)

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._late, self._bound = {}, {}
        super().__init__(params, defaults)

    # What a subclass defines.

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ConfigurationError for a setting that is out of range."""
        raise NotImplementedError

    def _takes_rows(self, group: dict[str, Any]) -> bool:
        """Return whether a step leaves rows without a gradient to a later catch-up."""
        raise NotImplementedError

    def _averages(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the tensors in a parameter's state that are as large as it."""
        raise NotImplementedError

    def _new_rows(self, rows: int, steps: int) -> Any:
        """Return the _core object for a parameter of which all rows have followed all steps."""
        raise NotImplementedError

    def _rates(self, group: dict[str, Any]) -> tuple[float, ...]:
        """Return the numbers that a step depends on."""
        raise NotImplementedError

    def _bind_rows(
        self,
        late: Any,
        value: Tensor,
        residual: Tensor | None,
        averages: list[Tensor],
        rates: tuple[float, ...],
    ) -> Any:
        """Return ``late`` bound to matrices [rows, d] and to what :meth:`_rates` returned."""
        raise NotImplementedError

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Take a step with the gradients of ``parameters``, sparse ones made dense."""
        raise NotImplementedError

    # What a user calls.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own if wanted."""
        self._check_options(param_group)
        _add_param_group(self, param_group)
        self._check_group(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with all parameters that have a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What ``closure`` returned.

        Raises:
            DataError: a row-sparse gradient belongs to a parameter that rows cannot be updated of,
                or a parameter that was updated in the backward pass has a gradient besides.
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
                if gradient.is_sparse and self._takes_rows(group):
                    self._step_rows(parameter, gradient, group)
                elif "residual" in self.state[parameter]:
                    self._step_all_rows(parameter, gradient, group)
                else:
                    dense.append(parameter)
            for parameter in dense:
                self.settle(parameter)
            if dense:
                self._step_dense(dense, group)
        for parameter, late in self._late.items():
            late.finish_step()
            self.state[parameter]["step"].fill_(late.steps)
        return loss

    def step_in_backward(self, *modules: nn.Module) -> None:
        """Update the parameters of these modules' row-sparse layers within ``loss.backward()``.

        The gradients of weights and biases then never exist: each row's is computed and used up
        while it is in the processor's cache. Rows catch up before a forward reads them. The
        results are those of separate steps; :meth:`step` does the rest of the parameters and must
        follow each backward.

        There is one backward, through one forward of each layer, before each :meth:`step`: not for
        gradient accumulation, clipping, a gradient scaler or a penalty on the weights. Setting a
        layer's ``row_updates`` to None ends it.

        Args:
            modules: layers such as :class:`qcompile.nn.LSHLinear`, or modules that contain some.

        Raises:
            ConfigurationError: a module has no such layer, or a parameter of it is frozen, not
                this optimiser's or has coupled weight decay in Adam.
        """
        layers = []
        for module in modules:
            found = [layer for layer in module.modules() if hasattr(layer, "row_updates")]
            if not found:
                raise ConfigurationError(
                    f"step_in_backward: {type(module).__name__} is and contains no layer with "
                    "row-sparse gradients, such as qcompile.nn.LSHLinear."
                )
            layers += found
        for parameter in chain.from_iterable(layer.parameters(recurse=False) for layer in layers):
            self._check_fusable(parameter)
        updates = RowUpdates(self)
        for layer in layers:
            layer.row_updates = updates  # type: ignore[assignment]

    def bind(self, parameter: Tensor) -> Any:
        """Return the ``_core.RowOptimizer`` of a parameter, with the rates of this moment.

        Raises:
            ConfigurationError: the parameter is not this optimiser's, or not updated by rows.
            DataError: it is not contiguous float32 or bfloat16 on the CPU.
        """
        return self._bind(parameter, self._check_fusable(parameter))

    @torch.no_grad()
    def flush(self) -> None:
        """Let every idle row catch up with the steps that it missed."""
        for parameter in self._late:
            self._flush(parameter)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after all rows have caught up; see ``torch.optim.Optimizer``."""
        self.flush()
        return _state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replace the state, by one of this class or of its namesake in ``torch.optim``.

        Raises:
            ConfigurationError: the state is of an optimiser with options that this one lacks.
        """
        for group in state_dict["param_groups"]:
            self._check_options(group)
        self._late.clear()
        self._bound.clear()
        _load_state_dict(self, state_dict)
        self._restore_residuals(state_dict)

    def __del__(self) -> None:
        # Nobody else knows what the rows of a model that lives on have missed.
        if self._late and not sys.is_finalizing():
            self.flush()

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._late, self._bound = {}, {}

    def _check_options(self, group: dict[str, Any]) -> None:
        wanted = [name for name in _UNSUPPORTED if group.get(name)]
        if wanted:
            raise ConfigurationError(
                f"{type(self).__name__}: a group of parameters has {', '.join(wanted)}, which only "
                f"torch.optim.{type(self).__name__} can do."
            )

    def _restore_residuals(self, state_dict: dict[str, Any]) -> None:
        # torch casts all of a parameter's state to the parameter's type.
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(ids, parameters, strict=True):
            residual = state_dict["state"].get(index, {}).get("residual")
            if residual is None:
                continue
            if parameter.dtype == torch.bfloat16:
                self.state[parameter]["residual"] = residual
            else:
                del self.state[parameter]["residual"]

    def _state_of(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not isinstance(state.get("step"), Tensor):
            state["step"] = torch.tensor(float(state.get("step") or 0))
        for name in self._averages(group, state):
            if state.get(name) is None:
                zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state[name] = huge_pages(zeros)
        return state

    def _bind(self, parameter: Tensor, group: dict[str, Any]) -> Any:
        _check_storage(parameter)
        state = self._state_of(parameter, group)
        if parameter.dtype == torch.bfloat16 and "residual" not in state:
            state["residual"] = huge_pages(torch.zeros_like(parameter, dtype=torch.int16))
        residual = state.get("residual")
        averages = [state[name] for name in self._averages(group, state)]
        late = self._late.get(parameter) or self._new_rows(len(parameter), int(state["step"]))
        owned = [parameter, *averages] if residual is None else [parameter, residual, *averages]
        key = late, self._rates(group), [tensor.data_ptr() for tensor in owned]
        known, bound = self._bound.get(parameter, (None, None))
        if known == key:
            return bound
        bound = self._bind_rows(
            late,
            _matrix(parameter.detach()),
            None if residual is None else _matrix(residual),
            [_matrix(average) for average in averages],
            key[1],
        )
        self._bound[parameter] = key, bound
        if parameter not in self._late:
            huge_pages(parameter.detach())
            self._late[parameter] = late
            owe(parameter, self)
        return bound

    def _check_fusable(self, parameter: Tensor) -> dict[str, Any]:
        """Return the parameter's group."""
        where = f"{type(self).__name__}: the parameter {list(parameter.shape)}"
        group = self._group_of(parameter)
        if group is None:
            raise ConfigurationError(f"{where} is not among those that this optimiser trains.")
        if not parameter.requires_grad:
            raise ConfigurationError(f"{where} is frozen; its layer cannot be updated by rows.")
        if not self._takes_rows(group):
            raise ConfigurationError(
                f"{where} has weight decay that is coupled to the gradient, which gives every row "
                "one; use AdamW, or weight_decay=0 for this parameter."
            )
        return group

    def _group_of(self, parameter: Tensor) -> dict[str, Any] | None:
        for group in self.param_groups:
            if any(each is parameter for each in group["params"]):
                return group
        return None

    def _step_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if gradient.sparse_dim() != 1:
            raise DataError(
                f"{type(self).__name__}: the gradient of the parameter {list(parameter.shape)} is "
                f"sparse in {gradient.sparse_dim()} axes; only the first may be."
            )
        self._bind(parameter, group).step(
            gradient._indices()[0].contiguous(),
            _matrix(gradient._values().float().contiguous()),
            torch.get_num_threads(),
        )
        increment_version(parameter)

    def _step_all_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = gradient.to_dense().float()
        if not self._takes_rows(group):
            gradient = gradient.add(parameter.float(), alpha=group["weight_decay"])
            group = {**group, "weight_decay": 0.0}
        rows = torch.arange(len(parameter))
        bound = self._bind(parameter, group)
        bound.step(rows, _matrix(gradient.contiguous()), torch.get_num_threads())
        increment_version(parameter)

    def _flush(self, parameter: Tensor) -> None:
        if not self._late[parameter].pending:
            return
        group = self._group_of(parameter)
        assert group is not None  # parameters never leave an optimiser
        self._bind(parameter, group).flush(torch.get_num_threads())
        increment_version(parameter)

    def settle(self, parameter: Tensor) -> None:
        """Let all rows of a parameter catch up and forget that they may be late."""
        if parameter in self._late:
            self._flush(parameter)
            del self._late[parameter], self._bound[parameter]


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.view(len(tensor), math.prod(tensor.shape[1:]))


def _check_storage(parameter: Tensor) -> None:
    stored = parameter.dtype in (torch.float32, torch.bfloat16) and parameter.dim() > 0
    if not (stored and parameter.device.type == "cpu" and parameter.is_contiguous()):
        raise DataError(
            "optimiser: rows can be updated of a contiguous float32 or bfloat16 parameter on the "
            f"CPU, but {list(parameter.shape)} is {parameter.dtype} on {parameter.device}; use "
            "dense gradients there (sparse=False, sparse_grad=False)."
        )
