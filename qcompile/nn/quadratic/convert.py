"""From a first-order layer to a quadratic one, keeping the function it computes where asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qcompile.config import Quadratic
from qcompile.errors import ConfigurationError
from qcompile.nn.quadratic.formulas import FORMULAS, PRESERVING_FORMS
from qcompile.nn.quadratic.layers import (
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticConv3d,
    QuadraticLayer,
    QuadraticLinear,
)

_CONVOLUTIONS: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: QuadraticConv1d,
    nn.Conv2d: QuadraticConv2d,
    nn.Conv3d: QuadraticConv3d,
}

CONVERTIBLE: tuple[type[nn.Module], ...] = (nn.Linear, *_CONVOLUTIONS)
"""Layers that :func:`from_first_order` takes; not their subclasses, which may compute more."""


def from_first_order(module: nn.Module, config: Quadratic) -> QuadraticLayer:
    """Build the quadratic layer that takes the place of ``module``.

    With preservation the new layer computes exactly what ``module`` computed, for finite inputs
    whose branches stay finite (a zero weight times infinity is NaN), and owns the very same
    Parameter objects, so that tied weights stay tied:

    - ``Quadra``: C is the first-order layer, A = 0, B is random.
    - ``T1L``: B is the first-order layer, A = 0.
    - ``T4``, ``T2_4`` (ReLinear, Fan et al., section IV): A is the first-order layer, B = 0 with
      bias one, C = 0. The bias of B exists even if ``module`` has none.

    In every product one factor is non-zero, so gradients reach the other. Without preservation
    weights are drawn afresh and every branch has a bias if ``module`` has one. Device, dtype,
    training flag and ``requires_grad`` carry over; new parameters are frozen if the weight was.

    Args:
        module: an ``nn.Linear`` or ``nn.Conv1d/2d/3d``, no subclass.
        config: form, initialisation and memory limit.

    Raises:
        ConfigurationError: ``module`` is of another type or parametrised, the form cannot
            preserve, or its weights would exceed ``config.memory_limit``.
    """
    _check_convertible(module)
    preserve = config.init == "preserve" or (
        config.init == "auto" and config.form in PRESERVING_FORMS
    )
    if preserve and config.form not in PRESERVING_FORMS:
        raise ConfigurationError(
            f"{config.form} cannot compute what a first-order layer computes: "
            f"init='preserve' works with {', '.join(PRESERVING_FORMS)}. "
            f"Use one of these, or init='kaiming' to start afresh."
        )
    layer = _build(module, config, preserve)
    _materialise(layer, module)
    if preserve:
        _preserve(layer, module)
    else:
        layer.reset_parameters()
    return layer.train(module.training)


def _check_convertible(module: nn.Module) -> None:
    name = type(module).__name__
    if type(module) not in CONVERTIBLE:
        known = ", ".join(kind.__name__ for kind in CONVERTIBLE)
        raise ConfigurationError(
            f"{name} cannot become quadratic: only {known} can, not their subclasses, "
            f"which may compute something else."
        )
    if "weight" not in module._parameters:
        raise ConfigurationError(
            f"{name} computes its weight from other parameters (weight or spectral norm, "
            f"pruning): remove the parametrisation first, for instance by "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        )


def _build(module: Any, config: Quadratic, preserve: bool) -> QuadraticLayer:
    """Make the layer on the meta device: it holds shapes and no memory yet."""
    formula = FORMULAS[config.form]
    bias: bool | str = module.bias is not None
    if preserve:
        bias = "".join(formula.branches) if bias else formula.ones
    options: dict[str, Any] = {
        "bias": bias,
        "form": config.form,
        "device": "meta",
        "dtype": module.weight.dtype,
        "memory_limit": config.memory_limit,
    }
    if isinstance(module, nn.Linear):
        return QuadraticLinear(module.in_features, module.out_features, **options)
    return _CONVOLUTIONS[type(module)](
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        padding_mode=module.padding_mode,
        **options,
    )


def _materialise(layer: QuadraticLayer, module: Any) -> None:
    """Give every parameter memory, where and as trainable as the first-order ones are.

    The branch that keeps the first-order parameters gets its own later; its memory is not
    touched before.
    """
    for name, parameter in list(layer.named_parameters()):
        like = module.bias if name.startswith("bias") and module.bias is not None else module.weight
        values = torch.empty_like(parameter, device=module.weight.device)
        setattr(layer, name, nn.Parameter(values, requires_grad=like.requires_grad))


def _preserve(layer: QuadraticLayer, module: Any) -> None:
    formula = layer.formula
    for letter in formula.branches:
        weight, bias = getattr(layer, f"weight_{letter}"), getattr(layer, f"bias_{letter}")
        if letter == formula.keeps:
            setattr(layer, f"weight_{letter}", module.weight)
            if module.bias is not None:
                setattr(layer, f"bias_{letter}", module.bias)
        elif letter in formula.zeroed:
            nn.init.zeros_(weight)
            if bias is not None:
                nn.init.constant_(bias, float(letter in formula.ones))
        else:
            layer.reset_branch(letter)
