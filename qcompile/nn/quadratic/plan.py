"""What a block computes, apart from its tensors: all that it takes to repeat it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor, nn

from qcompile.nn.quadratic.formulas import FORMULAS, Formula
from qcompile.nn.quadratic.geometry import Geometry

OUTER = "out"
"""Slot of the batch norm of the combination; those of branches go by their letters."""

_ATEN = torch.ops.aten
_SELU = (1.6732632423543772, 1.0507009873554805)  # alpha and scale, Klambauer et al., 2017

_DERIVATIVES: dict[type[nn.Module], tuple[tuple[str, ...], Callable[..., Tensor]]] = {
    nn.CELU: (("alpha",), lambda g, y, a: _ATEN.elu_backward(g, a, 1, 1 / a, False, y)),
    nn.ELU: (("alpha",), lambda g, y, a: _ATEN.elu_backward(g, a, 1, 1, False, y)),
    nn.GELU: (("approximate",), lambda g, y, a: _ATEN.gelu_backward(g, y, approximate=a)),
    nn.Hardsigmoid: ((), _ATEN.hardsigmoid_backward),
    nn.Hardswish: ((), _ATEN.hardswish_backward),
    nn.Hardtanh: (("min_val", "max_val"), _ATEN.hardtanh_backward),
    nn.LeakyReLU: (
        ("negative_slope",),
        lambda g, y, slope: _ATEN.leaky_relu_backward(g, y, slope, False),
    ),
    nn.LogSigmoid: ((), lambda g, y: g * torch.sigmoid(-y)),
    nn.Mish: ((), _ATEN.mish_backward),
    nn.ReLU: ((), lambda g, y: _ATEN.threshold_backward(g, y, 0)),
    nn.ReLU6: ((), lambda g, y: _ATEN.hardtanh_backward(g, y, 0, 6)),
    nn.SELU: ((), lambda g, y: _ATEN.elu_backward(g, *_SELU, 1, False, y)),
    nn.Sigmoid: ((), lambda g, y: _ATEN.sigmoid_backward(g, torch.sigmoid(y))),
    nn.SiLU: ((), _ATEN.silu_backward),
    nn.Softplus: (("beta", "threshold"), _ATEN.softplus_backward),
    nn.Softsign: ((), lambda g, y: g / (1 + y.abs()).square()),
    nn.Tanh: ((), lambda g, y: _ATEN.tanh_backward(g, torch.tanh(y))),
}
"""Activations that are repeated element by element: the options that tell two of a class apart,
and the gradient of the input from that of the output, the input and the options."""

_BY_NAME = {kind.__name__: kind for kind in _DERIVATIVES}


@dataclass(frozen=True)
class NormPlan:
    """How a batch norm works.

    Args:
        slot: a branch's letter, or :data:`OUTER`.
        batch: whether it normalises by the batch's own statistics.
        tracked: whether it keeps running statistics.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.
    """

    slot: str
    batch: bool
    tracked: bool
    momentum: float
    eps: float


@dataclass(frozen=True)
class Plan:
    """What one call computes.

    Args:
        form: name of the formula.
        geometry: of the convolution, ``None`` for a linear layer.
        norms: in the order of their tensors.
        activation: name and options of the class, or ``None``.
        pool: kernel, stride, padding, dilation and rounding of a max-pooling, or ``None``.
        memory: level, 1 or 3.
        dtype: type of the products, which autocast may have lowered.
    """

    form: str
    geometry: Geometry | None
    norms: tuple[NormPlan, ...]
    activation: tuple[Any, ...] | None
    pool: tuple[Any, ...] | None
    memory: int
    dtype: torch.dtype

    @property
    def formula(self) -> Formula:
        """The neuron."""
        return FORMULAS[self.form]

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of the branches, in order."""
        return tuple(self.formula.branches)

    @property
    def factors(self) -> str:
        """Letters of the branches that are multiplied."""
        return self.formula.factors

    @property
    def needed(self) -> tuple[str, ...]:
        """Letters of the branches whose values the backward pass needs."""
        slots = {norm.slot for norm in self.norms}
        if OUTER in slots or self.has_end:
            return self.letters
        return tuple(x for x in self.letters if x in self.factors or x in slots)

    @property
    def has_end(self) -> bool:
        """Whether something follows the batch norms."""
        return self.activation is not None or self.pool is not None

    def end(self, y: Tensor) -> Tensor:
        """Apply activation and pooling."""
        return self.pooled(self._activate(y))

    def pooled(self, y: Tensor) -> Tensor:
        """Apply the pooling."""
        if self.pool is None:
            return y
        pooled: Tensor = (F.max_pool2d if y.dim() == 4 else F.max_pool3d)(y, *self.pool)
        return pooled

    def end_backward(self, grad: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of ``y`` from that of ``end(y)``."""
        if self.pool is not None:
            grad = self.pool_backward(grad, self._activate(y))
        if self.activation is None:
            return grad
        name, *options = self.activation
        return _DERIVATIVES[_BY_NAME[name]][1](grad, y, *options)

    def _activate(self, y: Tensor) -> Tensor:
        if self.activation is None:
            return y
        name, *options = self.activation
        activated: Tensor = _BY_NAME[name](*options)(y)
        return activated

    def pool_backward(self, grad: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of what was pooled, y, from that of the output."""
        assert self.pool is not None
        flat = y.dim() == 4
        pool = _ATEN.max_pool2d_with_indices if flat else _ATEN.max_pool3d_with_indices
        back = (
            _ATEN.max_pool2d_with_indices_backward
            if flat
            else _ATEN.max_pool3d_with_indices_backward
        )
        _, indices = pool(y, *self.pool)
        towards: Tensor = back(grad, y, *self.pool, indices)
        return towards


def pool_key(module: Any) -> tuple[Any, ...] | None:
    """Describe a pooling, or return ``None`` if it is none that can be repeated."""
    kinds: dict[Any, int] = {nn.MaxPool2d: 2, nn.MaxPool3d: 3}
    dims = kinds.get(type(module))
    if dims is None or module.return_indices:
        return None
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    return (*(_each(size, dims) for size in sizes), module.ceil_mode)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


def activation_key(module: nn.Module | None) -> tuple[Any, ...] | None:
    """Describe an activation, or return ``None`` if it is none that can be repeated."""
    if module is None or type(module) not in _DERIVATIVES:
        return None
    names = _DERIVATIVES[type(module)][0]
    return (type(module).__name__, *(getattr(module, name) for name in names))
