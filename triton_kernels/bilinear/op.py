"""The full quadratic form as a torch operator, with gradients of every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcompile.ops import DOMAIN
from qcompile.triton_kernels.bilinear.reference import (
    bilinear_backward_reference,
    bilinear_reference,
)
from qcompile.triton_kernels.dispatch import can_measure, dispatcher, name_of_kind
from qcompile.triton_kernels.registration import fusible, kernel_op
from qcompile.triton_kernels.tuning import precision

MOST_WIDTH = 64
"""Largest K that the kernels take: a row of x and a matrix of a weight are one tile each.

At 128 the gradient of x spills registers on sm_80.
"""


def is_bilinear_fusible(x: Any, weight: Any) -> bool:
    """Return whether the kernels can compute a call: on a GPU, eagerly, K up to the limit.

    Under autocast plain torch does, which lowers types by itself.
    """
    return (
        isinstance(x, Tensor)
        and isinstance(weight, Tensor)
        and not torch.compiler.is_compiling()
        and fusible(x, weight)
        and not torch.is_autocast_enabled(x.device.type)
        and x.dtype == weight.dtype
        and x.device == weight.device
        and x.shape[-1] == weight.shape[-1] <= MOST_WIDTH
        and 0 not in x.shape
        and 0 not in weight.shape
    )


def choose_bilinear(x: Tensor, weight: Tensor, plain: Any) -> bool:
    """Return whether the kernels are faster than ``plain``, which is measured once a kind of call.

    Args:
        x: [M, K].
        weight: [N, K, K].
        plain: computes the same; called without arguments.
    """
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    call = _Call(x.detach(), weight.detach(), training, plain)
    return dispatcher().choose(call, can_measure(x)) == "fused"


class _Call:
    """A call as the dispatcher sees it."""

    def __init__(self, x: Tensor, weight: Tensor, training: bool, plain: Any) -> None:
        self._x, self._weight, self._training, self._plain = x, weight, training, plain

    def kind(self) -> tuple[Any, ...]:
        x, weight = self._x, self._weight
        return (
            x.device,
            "bilinear",
            *name_of_kind(x.dtype, x.shape[0]),
            *weight.shape[:2],
            x.stride(1) == 1,
            weight.stride(2) == 1,
            self._training,
        )

    def names(self) -> list[str]:
        return ["plain", "fused"]

    def first(self) -> list[str]:
        return self.names()

    def then(self, seconds: dict[str, float]) -> list[str]:
        return []

    def rule(self) -> str:
        half = self._x.dtype != torch.float32 or precision(self._x.dtype) == "tf32"
        return "fused" if half else "plain"

    def run(self, name: str) -> None:
        if name == "plain":
            y = self._plain()
            if self._training:
                bilinear_backward_reference(y, self._x, self._weight, (True, True))
            return
        y = fused_bilinear(self._x, self._weight)
        if self._training:
            fused_bilinear_backward(y, self._x, self._weight, True, True)


def _launchable(x: Tensor) -> bool:
    return fusible(x) and x.shape[-1] <= MOST_WIDTH


@kernel_op(f"{DOMAIN}::bilinear")
def fused_bilinear(x: Tensor, weight: Tensor) -> Tensor:
    """Return y[m, o] = x_mᵀ W_o x_m, [M, N]; by kernels on a GPU, else by plain torch.

    Args:
        x: [M, K]; any strides, K up to :data:`MOST_WIDTH` for the kernels.
        weight: [N, K, K], any strides.
    """
    if not _launchable(x):
        return bilinear_reference(x, weight)
    from qcompile.triton_kernels.bilinear.launch import launch_bilinear

    return launch_bilinear(x, weight)


@kernel_op(f"{DOMAIN}::bilinear_backward")
def fused_bilinear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs_x: bool, needs_weight: bool
) -> list[Tensor]:
    """Return the gradients of x and of the weight, as far as needed."""
    if not _launchable(x):
        return bilinear_backward_reference(grad, x, weight, (needs_x, needs_weight))
    from qcompile.triton_kernels.bilinear.launch import (
        launch_bilinear_input,
        launch_bilinear_weight,
    )

    found = [launch_bilinear_input(grad, x, weight)] if needs_x else []
    return [*found, launch_bilinear_weight(grad, x)] if needs_weight else found


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # gradients that can be differentiated again
        wanted = [t for t, needed in zip((x, weight), needs, strict=True) if needed]
        y = bilinear_reference(x, weight)
        gradients = list(torch.autograd.grad(y, wanted, grad, create_graph=True))
    else:
        gradients = fused_bilinear_backward(grad, x, weight, *needs)
    found = iter(gradients)
    return next(found) if needs[0] else None, next(found) if needs[1] else None


fused_bilinear.register_autograd(_backward, setup_context=_save)
