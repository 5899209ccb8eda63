"""``QuadraticBlock``: a quadratic layer, its batch norms and its activation as one module.

Source: QuadraLib (Xu et al., MLSys 2022, arXiv 2204.01701), whose networks train blocks
BN_a(A x)∘BN_b(B x) + BN_c(C x) that end in one more batch norm and a ReLU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qcompile.config import NORMS, choose
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn.quadratic.first_order import WeightType
from qcompile.nn.quadratic.layers import QuadraticLayer, QuadraticLinear
from qcompile.nn.quadratic.memory import Memory, call, keeps_less
from qcompile.nn.quadratic.plan import OUTER

BATCH_NORMS: dict[int, type[Any]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

_OF_THE_LAYER = frozenset(
    {
        *("in_features", "out_features", "in_channels", "out_channels", "kernel_size"),
        *("stride", "padding", "dilation", "groups", "padding_mode"),
    }
)


class QuadraticBlock(Memory, nn.Module):
    """A quadratic layer whose branches or output are normalised, and an activation.

    With ``batch_norm="branch"`` Quadra computes BN_a(A x)∘BN_b(B x) + BN_c(C x); every form has a
    batch norm for each of its branches likewise. ``outer`` normalises what the branches combine
    to; ``both`` does both, as QuadraLib's networks; ``none`` neither.

    The parts are ordinary modules: ``layer``, ``norm_a``, ``norm_b``, ``norm_c`` (those of the
    form's branches), ``norm``, ``activation`` and ``pool``, absent ones ``None``.

    Args:
        layer: a quadratic layer. Where each branch is normalised its biases have no effect:
            make it with ``bias=False``.
        batch_norm: ``branch``, ``outer``, ``both`` or ``none``.
        activation: a module for the end, or ``None``.
        pool: one behind it, or ``None``; ``nn.MaxPool2d`` and ``3d`` save memory here at levels 1
            and 3.
        eps: of each batch norm.
        momentum: of each batch norm.
        memory: what training keeps for the backward pass: 0, 1 or 3. At 1 and 3 hooks of the
            parts are not called, since the block is one step of autograd.

    Shape:
        As the layer's. With a batch norm, the input of a linear layer is [batch, n], and that of a
        convolution has a batch dimension.

    Raises:
        ConfigurationError: an argument is of a wrong kind.
    """

    def __init__(
        self,
        layer: QuadraticLayer,
        batch_norm: str = "branch",
        activation: nn.Module | None = None,
        pool: nn.Module | None = None,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        memory: int = 0,
    ) -> None:
        super().__init__()
        self.memory = memory
        if not isinstance(layer, QuadraticLayer):
            raise ConfigurationError(
                f"QuadraticBlock takes a quadratic layer, got {type(layer).__name__}: make one "
                f"with qcompile.nn.from_first_order, for instance."
            )
        for name, end in (("activation", activation), ("pool", pool)):
            if end is not None and not isinstance(end, nn.Module):
                raise ConfigurationError(
                    f"QuadraticBlock: {name} must be a module or None, got {type(end).__name__}."
                )
        choose("batch_norm", batch_norm, NORMS)
        self.layer = layer
        letters = layer.formula.branches if batch_norm in ("branch", "both") else ()
        like = layer.weight

        def make(wanted: bool) -> nn.Module | None:
            if not wanted:
                return None
            kind = BATCH_NORMS[layer.dims]
            norm: nn.Module = kind(
                like.shape[0], eps=eps, momentum=momentum, device=like.device, dtype=like.dtype
            )
            return norm

        for letter in layer.formula.branches:
            self.register_module(f"norm_{letter}", make(letter in letters))
        self.register_module("norm", make(batch_norm in ("outer", "both")))
        self.register_module("activation", activation)
        self.register_module("pool", pool)
        self.train(layer.training)

    @property
    def batch_norm(self) -> str:
        """Where this block normalises, one of ``branch``, ``outer``, ``both`` and ``none``."""
        inner, outer = bool(self.branch_norms), self.norm is not None
        return {(True, False): "branch", (False, True): "outer", (True, True): "both"}.get(
            (inner, outer), "none"
        )

    @property
    def branch_norms(self) -> dict[str, nn.Module]:
        """The batch norms of the branches, by letter."""
        norms = {letter: getattr(self, f"norm_{letter}") for letter in self.layer.formula.branches}
        return {letter: norm for letter, norm in norms.items() if norm is not None}

    @property
    def form(self) -> str:
        """Name of the layer's formula."""
        return self.layer.form

    @property
    def weight(self) -> WeightType:
        """Type, device and shape of the first-order weight, for code that casts to them."""
        return self.layer.weight

    def __getattr__(self, name: str) -> Any:
        # Code around a convolution asks it for its stride and the like.
        return getattr(self.layer, name) if name in _OF_THE_LAYER else super().__getattr__(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the block; shapes are those of the layer.

        Raises:
            DataError: batch norms would take another dimension for the channels.
        """
        self._check_input(x)
        if self.memory and keeps_less(self, x):
            norms = self.branch_norms | ({} if self.norm is None else {OUTER: self.norm})
            ends = (self.activation, self.pool)
            return call(self.layer, norms, ends, self.memory, x)
        values = self.layer.branches(x)
        for letter, norm in self.branch_norms.items():
            values[letter] = norm(values[letter])
        y = self.layer.formula.combine(values)
        if self.norm is not None:
            y = self.norm(y)
        y = y if self.activation is None else self.activation(y)
        return y if self.pool is None else self.pool(y)

    def _check_input(self, x: Any) -> None:
        if not isinstance(x, torch.Tensor) or self.batch_norm == "none":
            return
        wanted = 2 if isinstance(self.layer, QuadraticLinear) else self.layer.dims + 2
        if x.dim() != wanted:
            shape = "[batch, n]" if wanted == 2 else f"[batch, C, {self.layer.dims} dimensions]"
            raise DataError(
                f"QuadraticBlock with batch_norm={self.batch_norm!r} expects {shape}, "
                f"got {tuple(x.shape)}: reshape the input, or use batch_norm='none'."
            )

    def extra_repr(self) -> str:
        """Say where the block normalises."""
        memory = f", memory={self.memory}" if self.memory else ""
        return f"batch_norm={self.batch_norm!r}{memory}"
