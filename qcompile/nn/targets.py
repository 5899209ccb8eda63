"""Checks of what a caller hands to an output layer: targets come from data, and data is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.errors import DataError

__all__ = ["PADDING", "check_hidden", "label_matrix"]

PADDING = -1
"""Fills up the labels of an example that has fewer than others."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def check_hidden(hidden: Tensor, in_features: int, layer: str = "LSHLinear") -> None:
    """Check the input of a layer.

    Args:
        hidden: floating [..., in_features]; a tracer's proxy passes unchecked.
        in_features: d.
        layer: its name, for the message.

    Raises:
        DataError: ``hidden`` has another width or type.
    """
    if not isinstance(hidden, Tensor):
        return
    if not hidden.is_floating_point():
        raise DataError(
            f"{layer}: hidden has dtype {hidden.dtype}, expected floating-point activations."
        )
    if hidden.dim() == 0 or hidden.shape[-1] != in_features:
        raise DataError(
            f"{layer}: hidden has shape {list(hidden.shape)}, "
            f"expected the last axis to be {in_features} wide."
        )


def label_matrix(hidden: Tensor, target: Tensor, classes: int) -> Tensor:
    """Return the labels of each example as one int64 matrix [B, T], padded with -1.

    Args:
        hidden: [..., d]; its leading axes are the examples.
        target: integer [...] with one label an example, or [..., T] padded with -1.
        classes: N; labels must be below.

    Raises:
        DataError: no example, or a target of the wrong type, shape or range.
    """
    if not isinstance(target, Tensor) or target.dtype not in _INTEGERS:
        found = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise DataError(f"LSHLinear: target is {found}, expected an int64 tensor of labels.")
    examples = hidden.shape[:-1]
    several = target.dim() == hidden.dim()
    if target.shape[: len(examples)] != examples or target.dim() > hidden.dim():
        raise DataError(
            f"LSHLinear: target has shape {list(target.shape)}, expected {list(examples)} (one "
            f"label an example) or {[*examples, 'T']} (several, padded with -1) beside hidden "
            f"{list(hidden.shape)}."
        )
    if target.numel() == 0:
        raise DataError(
            f"LSHLinear: empty batch, hidden has shape {list(hidden.shape)} and target "
            f"{list(target.shape)}; skip batches without examples."
        )
    _check_range(target, classes, several)
    return target.long().reshape(examples.numel(), -1).contiguous()


def _check_range(target: Tensor, classes: int, several: bool) -> None:
    least = PADDING if several else 0
    greatest = target.amax(-1) if several else target
    if target.min() >= least and greatest.min() >= 0 and greatest.max() < classes:
        return
    wrong = ((target < least) | (target >= classes)).nonzero()
    if len(wrong):
        where = tuple(wrong[0].tolist())
        place = f"target{list(where)}" if where else "target"
        padding = " or -1 as padding" if several else ""
        raise DataError(
            f"LSHLinear: {place} is {target[where].item()}, expected a label from 0 to "
            f"{classes - 1}{padding}."
        )
    if several:
        bare = (target < 0).all(-1).nonzero()
        if len(bare):
            raise DataError(
                f"LSHLinear: target{bare[0].tolist()} holds padding only; each example needs a "
                "label."
            )
