"""From a first-order layer to a quadratic one, keeping the function it computes where asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qcompile.config import Quadratic
from qcompile.errors import ConfigurationError
from qcompile.nn.quadratic.block import QuadraticBlock
from qcompile.nn.quadratic.formulas import FORMULAS, PRESERVING_FORMS
from qcompile.nn.quadratic.layers import (
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticConv3d,
    QuadraticLayer,
    QuadraticLinear,
)

CONVOLUTIONS: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: QuadraticConv1d,
    nn.Conv2d: QuadraticConv2d,
    nn.Conv3d: QuadraticConv3d,
}

_OF_LINEAR = ("in_features", "out_features")
_OF_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("groups", "padding_mode"),
)

CONVERTIBLE: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS)
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
    preserve = _is_preserving(config)
    formula = FORMULAS[config.form]
    bias: bool | str = module.bias is not None
    if preserve:
        bias = "".join(formula.branches) if bias else formula.ones
    layer = _build(module, config, bias)
    if preserve:
        _preserve(layer, module)
    else:
        layer.reset_parameters()
    return layer.train(module.training)


def block_from_first_order(
    module: nn.Module, norm: nn.Module, activation: nn.Module | None, config: Quadratic
) -> QuadraticBlock:
    """Build the block that takes the place of a layer, its batch norm and its activation.

    With preservation the block computes the same bits in training and in evaluation mode, and
    owns the very same batch norm and Parameter objects:

    - ``batch_norm="outer"``: the layer becomes that of :func:`from_first_order`; the batch norm
      normalises its output, as before.
    - ``branch``: one branch takes the layer and its batch norm: C of ``Quadra``, B of ``T1L``, A
      of ``T4`` and ``T2_4``. The batch norms of A of ``Quadra`` and ``T1L``, B of ``T4`` and
      ``T2_4``, and C of ``T2_4`` begin with scale zero and, for B, offset one, so that these
      branches are constant. Their weights are random, and gradients reach their scale at once.
    - ``both`` cannot preserve: the outer batch norm normalises a second time. Its branches begin
      as above with ``init="auto"``.

    Args:
        module: an ``nn.Linear`` or ``nn.Conv1d/2d/3d``, no subclass.
        norm: its ``nn.BatchNorm1d/2d/3d``.
        activation: what follows, or ``None``.
        config: form, initialisation, place of the batch norm, memory limit.

    Raises:
        ConfigurationError: as :func:`from_first_order`, or ``config`` asks to preserve what
            ``both`` cannot, or for no batch norm at all.
    """
    if config.batch_norm == "none":
        raise ConfigurationError(
            "a block made of a layer and its batch norm cannot have batch_norm='none': use "
            "'branch', 'outer' or 'both', or from_first_order on the layer alone."
        )
    if config.batch_norm == "both" and config.init == "preserve":
        raise ConfigurationError(
            "batch_norm='both' cannot compute what the layer and its batch norm compute: the "
            "branches can, but the outer batch norm normalises a second time. Use 'branch', or "
            "init='auto' to preserve the branches alone."
        )
    if config.batch_norm == "outer":
        block = _block(from_first_order(module, config), activation)
        block.norm = norm
        return block
    _check_convertible(module)
    preserve = _is_preserving(config)
    formula = FORMULAS[config.form]
    kept = preserve and module.bias is not None
    layer = _build(module, config, formula.keeps if kept else False)
    if preserve:
        _keep(layer, module)
    else:
        layer.reset_parameters()
    block = _block(layer, activation)
    for letter in formula.branches:
        own: Any = norm if preserve and letter == formula.keeps else _norm_like(norm, layer)
        if preserve and letter in formula.zeroed:
            nn.init.zeros_(own.weight)
            nn.init.constant_(own.bias, float(letter in formula.ones))
        setattr(block, f"norm_{letter}", own)
    if config.batch_norm == "both":
        block.norm = _norm_like(norm, layer)
    layer.train(module.training)
    block.training = module.training
    return block


def _block(layer: QuadraticLayer, activation: nn.Module | None) -> QuadraticBlock:
    """Make a block without batch norms, at the memory level of its layer."""
    return QuadraticBlock(layer, "none", activation, memory=layer.memory)


def _is_preserving(config: Quadratic) -> bool:
    """Return whether the new layer takes over the old one's function.

    Raises:
        ConfigurationError: it should and cannot.
    """
    if config.init == "preserve" and config.form not in PRESERVING_FORMS:
        raise ConfigurationError(
            f"{config.form} cannot compute what a first-order layer computes: "
            f"init='preserve' works with {', '.join(PRESERVING_FORMS)}. "
            f"Use one of these, or init='kaiming' to start afresh."
        )
    return config.init != "kaiming" and config.form in PRESERVING_FORMS


def _norm_like(norm: Any, layer: QuadraticLayer) -> Any:
    """Make a fresh batch norm with scale and offset, as trainable as the layer."""
    weight = norm.weight if norm.weight is not None else next(layer.parameters())
    fresh = type(norm)(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        track_running_stats=norm.track_running_stats,
        device=weight.device,
        dtype=weight.dtype,
    )
    trainable = any(parameter.requires_grad for parameter in layer.parameters())
    return fresh.requires_grad_(trainable).train(norm.training)


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


def _build(module: Any, config: Quadratic, bias: bool | str) -> QuadraticLayer:
    """Make a layer of the same geometry, device, type and ``requires_grad``, not yet filled.

    The branch that keeps the first-order parameters gets its own later; its memory is not
    touched before.
    """
    layer = _build_shapes(module, config, bias)
    for name, parameter in list(layer.named_parameters()):
        like = module.bias if name.startswith("bias") and module.bias is not None else module.weight
        values = torch.empty_like(parameter, device=module.weight.device)
        setattr(layer, name, nn.Parameter(values, requires_grad=like.requires_grad))
    return layer


def _build_shapes(module: Any, config: Quadratic, bias: bool | str) -> QuadraticLayer:
    """Make the layer on the meta device: it holds shapes and no memory yet."""
    options: dict[str, Any] = {
        "bias": bias,
        "form": config.form,
        "device": "meta",
        "dtype": module.weight.dtype,
        "memory_limit": config.memory_limit,
        "memory": config.memory,
    }
    kind: type[Any] = (
        QuadraticLinear if isinstance(module, nn.Linear) else CONVOLUTIONS[type(module)]
    )
    layer: QuadraticLayer = kind(**sizes(module), **options)
    return layer


def sizes(module: Any) -> dict[str, Any]:
    """Return the arguments that first-order and quadratic layers of one geometry share."""
    linear = isinstance(module, nn.Linear | QuadraticLinear)
    return {name: getattr(module, name) for name in (_OF_LINEAR if linear else _OF_CONVOLUTION)}


def _preserve(layer: QuadraticLayer, module: Any) -> None:
    """Make the layer compute what the first-order one does."""
    formula = layer.formula
    _keep(layer, module, formula.zeroed)
    for letter in formula.zeroed:
        nn.init.zeros_(getattr(layer, f"weight_{letter}"))
        bias = getattr(layer, f"bias_{letter}")
        if bias is not None:
            nn.init.constant_(bias, float(letter in formula.ones))


def _keep(layer: QuadraticLayer, module: Any, others: str = "") -> None:
    """Give one branch the first-order layer's own parameters, draw all but ``others`` afresh."""
    for letter in layer.formula.branches:
        if letter == layer.formula.keeps:
            setattr(layer, f"weight_{letter}", module.weight)
            if module.bias is not None:
                setattr(layer, f"bias_{letter}", module.bias)
        elif letter not in others:
            layer.reset_branch(letter)
