"""From a quadratic layer back to the first-order layer that it contains."""

from __future__ import annotations

from typing import Any

from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.nn.quadratic.block import QuadraticBlock
from qcompile.nn.quadratic.convert import CONVOLUTIONS, sizes
from qcompile.nn.quadratic.layers import QuadraticLayer, QuadraticLinear

__all__ = ["to_first_order"]

_FIRST_ORDER: dict[type[nn.Module], type[Any]] = {
    QuadraticLinear: nn.Linear,
    **{quadratic: plain for plain, quadratic in CONVOLUTIONS.items()},
}


def to_first_order(layer: QuadraticLayer | QuadraticBlock) -> nn.Module:
    """Return the first-order layer without the quadratic terms; it owns the same Parameters.

    It is what :func:`from_first_order` began with, its weights trained on: C of ``Quadra``, B of
    ``T1L``, A of ``T4`` and ``T2_4``. Of a block it is an ``nn.Sequential`` of that layer, its
    batch norms, activation and pooling.

    Args:
        layer: of a form that contains a first-order neuron.

    Raises:
        ConfigurationError: the form contains none.
    """
    if isinstance(layer, QuadraticBlock):
        kept = layer.branch_norms.get(layer.layer.formula.keeps)
        parts = [to_first_order(layer.layer), kept, layer.norm, layer.activation, layer.pool]
        return nn.Sequential(*(part for part in parts if part is not None)).train(layer.training)
    keeps = layer.formula.keeps
    if not keeps:
        raise ConfigurationError(
            f"{type(layer).__name__} of form {layer.form} contains no first-order neuron."
        )
    weight, bias = getattr(layer, f"weight_{keeps}"), getattr(layer, f"bias_{keeps}")
    plain = _FIRST_ORDER[type(layer)](
        **sizes(layer), bias=bias is not None, device="meta", dtype=weight.dtype
    )
    plain.weight = weight
    if bias is not None:
        plain.bias = bias
    reverted: nn.Module = plain.train(layer.training)
    return reverted
