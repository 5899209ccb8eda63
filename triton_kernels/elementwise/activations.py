"""Activations that the kernels know, in plain torch; ``device.py`` has them for the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

_ATEN = torch.ops.aten

ACTIVATE: dict[str, Callable[[Any], Any]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""Functions by name; ``gelu`` is the exact one."""

ACTIVATE_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda g, z: g,
    "relu": lambda g, z: _ATEN.threshold_backward(g, z, 0),
    "gelu": _ATEN.gelu_backward,
    "gelu_tanh": lambda g, z: _ATEN.gelu_backward(g, z, approximate="tanh"),
    "silu": _ATEN.silu_backward,
    "sigmoid": lambda g, z: _ATEN.sigmoid_backward(g, torch.sigmoid(z)),
    "tanh": lambda g, z: _ATEN.tanh_backward(g, torch.tanh(z)),
}
"""Gradient of the argument, from that of the value and the argument."""
