"""What the operator demands of its tensors, before anything is computed."""

from __future__ import annotations

from typing import Any

import torch

from qcompile.errors import DataError
from qcompile.triton_kernels.quadratic_linear.forms import FORMS


def check_tensors(x: Any, weights: tuple[Any, ...], biases: tuple[Any, ...], form: str) -> None:
    """Refuse tensors that do not fit the form or each other.

    Args:
        x: [..., K].
        weights: of the branches a, b, c: [N, K] or ``None``.
        biases: likewise: [N] or ``None``.
        form: canonical name.

    Raises:
        DataError: a weight is missing or superfluous, or shapes, types or devices differ.
    """
    letters = FORMS[form].letters
    for letter, weight, bias in zip("abc", weights, biases, strict=True):
        if letter not in letters and (weight is not None or bias is not None):
            kind = "weight" if weight is not None else "bias"
            raise DataError(
                f"quadratic_linear: {form} has the branches {letters!r}, so {kind}_{letter} must "
                f"be None."
            )
        if letter in letters and weight is None:
            raise DataError(f"quadratic_linear: {form} needs weight_{letter}, an [N, K] tensor.")
    if x.dim() == 0 or not x.is_floating_point():
        raise DataError(
            f"quadratic_linear: x must be floating point of shape [..., K], got {x.dtype} "
            f"{tuple(x.shape)}."
        )
    _check_shapes(x, weights, biases)
    _check_kinds(x, weights, biases)


def _check_shapes(x: Any, weights: tuple[Any, ...], biases: tuple[Any, ...]) -> None:
    first = weights[0]
    for letter, weight, bias in zip("abc", weights, biases, strict=True):
        if weight is not None and (weight.dim() != 2 or weight.shape != first.shape):
            raise DataError(
                f"quadratic_linear: weights must be [N, K] and alike; weight_a is "
                f"{tuple(first.shape)}, weight_{letter} {tuple(weight.shape)}."
            )
        if bias is not None and bias.shape != first.shape[:1]:
            raise DataError(
                f"quadratic_linear: bias_{letter} must be [{first.shape[0]}], as the weights have "
                f"{first.shape[0]} rows, got {tuple(bias.shape)}."
            )
    if x.shape[-1] != first.shape[1]:
        raise DataError(
            f"quadratic_linear: weights [N, K] of {tuple(first.shape)} cannot take x of "
            f"{tuple(x.shape)}: its last dimension must be K."
        )


def _check_kinds(x: Any, weights: tuple[Any, ...], biases: tuple[Any, ...]) -> None:
    """Compare devices, and types unless autocast makes them one."""
    same_type = not torch.is_autocast_enabled(x.device.type)
    names = [f"weight_{x}" for x in "abc"] + [f"bias_{x}" for x in "abc"]
    for name, tensor in zip(names, (*weights, *biases), strict=True):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise DataError(
                f"quadratic_linear: x is on {x.device} and {name} on {tensor.device}: move one of "
                f"them."
            )
        if same_type and tensor.dtype != x.dtype:
            raise DataError(
                f"quadratic_linear: x is {x.dtype} and {name} {tensor.dtype}: convert one of them, "
                f"or use torch.autocast."
            )
