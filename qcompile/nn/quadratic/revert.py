"""From a quadratic layer back to the first-order layer that it contains."""

from __future__ import annotations

from typing import Any

from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.nn.quadratic.block import QuadraticBlock
from qcompile.nn.quadratic.layers import (
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticConv3d,
    QuadraticLayer,
    QuadraticLinear,
)

__all__ = ["to_first_order"]

_CONVOLUTIONS: dict[type[QuadraticLayer], type[Any]] = {
    QuadraticConv1d: nn.Conv1d,
    QuadraticConv2d: nn.Conv2d,
    QuadraticConv3d: nn.Conv3d,
}


def to_first_order(layer: QuadraticLayer | QuadraticBlock) -> nn.Module:
    """Return the first-order layer without the quadratic terms; it owns the same Parameters.

    It is what :func:`from_first_order` began with, its weights trained on: C of ``Quadra``, B of
    ``T1L``, A of ``T4`` and ``T2_4``. Of a block it is an ``nn.Sequential`` of that layer, its
    batch norms and the activation.

    Args:
        layer: of a form that contains a first-order neuron.

    Raises:
        ConfigurationError: the form contains none.
    """
    if isinstance(layer, QuadraticBlock):
        kept = layer.branch_norms.get(layer.layer.formula.keeps)
        parts = [to_first_order(layer.layer), kept, layer.norm, layer.activation]
        return nn.Sequential(*(part for part in parts if part is not None)).train(layer.training)
    keeps = layer.formula.keeps
    if not keeps:
        raise ConfigurationError(
            f"{type(layer).__name__} of form {layer.form} contains no first-order neuron."
        )
    weight, bias = getattr(layer, f"weight_{keeps}"), getattr(layer, f"bias_{keeps}")
    options: dict[str, Any] = {"bias": bias is not None, "device": "meta", "dtype": weight.dtype}
    plain: Any
    if isinstance(layer, QuadraticLinear):
        plain = nn.Linear(layer.in_features, layer.out_features, **options)
    else:
        some: Any = layer
        plain = _CONVOLUTIONS[type(layer)](
            some.in_channels,
            some.out_channels,
            some.kernel_size,
            stride=some.stride,
            padding=some.padding,
            dilation=some.dilation,
            groups=some.groups,
            padding_mode=some.padding_mode,
            **options,
        )
    plain.weight = weight
    if bias is not None:
        plain.bias = bias
    return plain.train(layer.training)
