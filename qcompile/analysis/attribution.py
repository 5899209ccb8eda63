"""Integrated gradients that are exact for networks of quadratic layers without activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import ConfigurationError, DataError

__all__ = ["integrated_gradients"]

MOST_LAYERS = 12
"""2^11 steps; beyond that the polynomial's degree outruns float64."""


def integrated_gradients(
    model: nn.Module,
    inputs: Tensor,
    target: int | Tensor,
    *,
    layers: int,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    """Attribute an output to the inputs, by Captum's integrated gradients.

    Along the straight line from the baseline to an input, the output of L quadratic layers with
    nothing but linear maps between them is a polynomial of degree 2^L. Gauss and Legendre's rule
    with 2^(L−1) points integrates its gradient, of degree 2^L − 1, exactly (Sundararajan et al.,
    "Axiomatic attribution for deep networks", ICML 2017; the rule: Gautschi, "Orthogonal
    polynomials", 2004): the attributions add up to the difference of the outputs but for rounding,
    of which Captum's float32 weights are most. Activations in between make it an approximation.
    Normalisations must be in evaluation mode.

    Args:
        model: [B, …] → [B, classes].
        inputs: floating [B, …].
        target: the class, one for all or int64 [B].
        layers: L, quadratic layers that an output passes one after the other, 1 to 12.
        baseline: where the line starts: a number, or a tensor like ``inputs``.

    Returns:
        Attributions, like ``inputs``.

    Raises:
        ConfigurationError: captum is not installed, or ``layers`` is out of range.
        DataError: ``inputs`` are not floating.
    """
    if not 1 <= layers <= MOST_LAYERS:
        raise ConfigurationError(
            f"integrated_gradients: layers must be 1 to {MOST_LAYERS}, got {layers!r}."
        )
    if not inputs.is_floating_point():
        raise DataError(f"integrated_gradients: inputs are {inputs.dtype}, expected floating.")
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ConfigurationError(
            "integrated_gradients needs captum: python -m pip install "
            f"'torch-qcompile[analysis]'. ({error})"
        ) from error
    method: Any = IntegratedGradients(model, multiply_by_inputs=True)
    base = baseline if isinstance(baseline, Tensor) else torch.full_like(inputs, baseline)
    found: Tensor = method.attribute(
        inputs, baselines=base, target=target, n_steps=2 ** (layers - 1), method="gausslegendre"
    )
    return found
