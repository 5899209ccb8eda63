"""A normalised block in plain torch: the definition that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompile.triton_kernels.batch_norm_block.spec import Spec
from qcompile.triton_kernels.elementwise.activations import ACTIVATE, ACTIVATE_BACKWARD

Tensors = Sequence[Tensor]


def block_reference(
    values: Tensors, weights: Tensors, biases: Tensors, spec: Spec
) -> tuple[Tensor, list[Tensor]]:
    """Compute a block; autograd can record it.

    Args:
        values: the branches a, b and c, as far as there are, [..., C, ...].
        weights: of each batch norm, those of branches first, [C]; or none.
        biases: likewise.
        spec: what to compute.

    Returns:
        The output, and mean and one over the deviation of each batch norm.
    """
    wide = [x.to(_computed_in(x)) for x in values]
    statistics: list[Tensor] = []

    def normalise(x: Tensor) -> Tensor:
        statistics.extend(_moments(x, spec))
        slot = len(statistics) // 2 - 1
        return _affine(_hat(x, statistics[-2:], spec), weights, biases, slot, spec)

    if spec.of_branches:
        wide = [normalise(x) for x in wide]
    y = _combine(wide, spec)
    if spec.outer:
        y = normalise(y.to(values[0].dtype).to(y.dtype))
    return ACTIVATE[spec.activation](y).to(values[0].dtype), statistics


def running_reference(
    values: Tensors, statistics: Tensors, running: Tensors, spec: Spec
) -> list[Tensor]:
    """Return the new running mean and variance of each batch norm."""
    if not running:
        return []
    count = values[0].numel() // values[0].shape[spec.channels]
    fresh = []
    for slot in range(len(running) // 2):
        mean, rstd = statistics[2 * slot : 2 * slot + 2]
        variance = (rstd**-2 - spec.eps) * (count / (count - 1))
        for old, new in zip(running[2 * slot :], (mean, variance), strict=False):
            fresh.append(old + spec.momentum * (new.to(old.dtype) - old))
    return fresh


def block_backward_reference(
    grad: Tensor,
    values: Tensors,
    weights: Tensors,
    biases: Tensors,
    statistics: Tensors,
    spec: Spec,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the gradients of values, weights and biases, of every batch norm.

    Arguments are those of :func:`block_reference`, and its statistics.
    """
    wide = [x.to(_computed_in(x)) for x in values]
    hats = wide
    normal = wide
    if spec.of_branches:
        hats = [_hat(x, statistics[2 * i : 2 * i + 2], spec) for i, x in enumerate(wide)]
        normal = [_affine(x, weights, biases, i, spec) for i, x in enumerate(hats)]
    z = _combine(normal, spec)
    of_weights: list[Tensor] = []
    of_biases: list[Tensor] = []
    last = spec.count(len(values)) - 1
    if spec.outer:
        z = z.to(values[0].dtype).to(z.dtype)
        hat = _hat(z, statistics[2 * last :], spec)
        z = _affine(hat, weights, biases, last, spec)
    delta = ACTIVATE_BACKWARD[spec.activation](grad.to(z.dtype), z)
    if spec.outer:
        delta = _through(delta, hat, last, weights, statistics, (of_weights, of_biases), spec)
    outer = of_weights[:], of_biases[:]
    of_weights.clear()
    of_biases.clear()
    towards = _towards(delta, normal, spec)
    if spec.of_branches:
        sums = (of_weights, of_biases)
        towards = [
            _through(g, hat, slot, weights, statistics, sums, spec)
            for slot, (g, hat) in enumerate(zip(towards, hats, strict=True))
        ]
    found = [g.to(x.dtype) for g, x in zip(towards, values, strict=True)]
    return found, of_weights + outer[0], of_biases + outer[1]


def _computed_in(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _over(x: Tensor, spec: Spec) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != spec.channels % x.dim()]


def _row(constants: Any, x: Tensor, spec: Spec) -> Any:
    shape = [1] * x.dim()
    shape[spec.channels] = -1
    return constants.view(shape)


def _moments(x: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, _over(x, spec), correction=0)
    return mean, (variance + spec.eps).rsqrt()


def _hat(x: Tensor, statistics: Tensors, spec: Spec) -> Tensor:
    mean, rstd = (_row(constants, x, spec) for constants in statistics)
    return (x - mean) * rstd


def _affine(hat: Tensor, weights: Tensors, biases: Tensors, slot: int, spec: Spec) -> Tensor:
    y = hat * _row(weights[slot], hat, spec) if weights else hat
    y = y + _row(biases[slot], hat, spec) if biases else y
    return y.to(hat.dtype)


def _combine(values: Tensors, spec: Spec) -> Tensor:
    y = values[0]
    if spec.product == "pair":
        y = y * values[1]
    elif spec.product == "square":
        y = y * y
    return y + values[-1] if spec.has_c(len(values)) else y


def _towards(delta: Tensor, values: Tensors, spec: Spec) -> list[Tensor]:
    """Return the gradients of what is combined."""
    found = [delta]
    if spec.product == "pair":
        found = [delta * values[1], delta * values[0]]
    elif spec.product == "square":
        found = [2 * delta * values[0]]
    return [*found, delta] if spec.has_c(len(values)) else found


def _through(
    grad: Tensor,
    hat: Tensor,
    slot: int,
    weights: Tensors,
    statistics: Tensors,
    sums: tuple[list[Tensor], list[Tensor]],
    spec: Spec,
) -> Tensor:
    """Pass a gradient through a batch norm, and note those of its weight and bias."""
    over = _over(grad, spec)
    projected, plain = (grad * hat).sum(over), grad.sum(over)
    sums[0].append(projected)
    sums[1].append(plain)
    count = grad.numel() // grad.shape[spec.channels]
    scale = statistics[2 * slot + 1]
    scale = scale * weights[slot] if weights else scale
    centred = grad - _row(plain, grad, spec) / count - hat * _row(projected, grad, spec) / count
    return (centred * _row(scale, grad, spec)).to(grad.dtype)
