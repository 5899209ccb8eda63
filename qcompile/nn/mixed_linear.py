"""A dense product with a weight that may be stored in another type than it is computed in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["mixed_linear"]

_ROWS_AT_ONCE = 1 << 16


def mixed_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``hidden · weightᵀ + bias`` in the type of ``hidden``; under autocast, in autocast's.

    Args:
        hidden: floating [..., d]; a tracer's proxy is taken to have the weight's type.
        weight: floating [N, d]. Of another type it is converted a part at a time, to bound memory.
        bias: [N] of the weight's type, or None.
    """
    same = not isinstance(hidden, Tensor) or hidden.dtype == weight.dtype
    if same or torch.is_autocast_enabled(hidden.device.type):
        return F.linear(hidden, weight, bias)
    parts = []
    for begin in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        own = None if bias is None else bias[rows].to(hidden.dtype)
        parts.append(F.linear(hidden, weight[rows].to(hidden.dtype), own))
    return torch.cat(parts, dim=-1)
