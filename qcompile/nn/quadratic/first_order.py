"""What code written around a first-order layer may still ask of the quadratic one in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from qcompile.errors import PassError


@dataclass(frozen=True)
class WeightType:
    """Stands for ``layer.weight``, which a quadratic layer does not have.

    Models ask a layer for the type and device of its weight, to cast an input to. Computing with
    the weight itself would compute something else than the layer does, and is refused.

    Args:
        dtype: of every parameter of the layer.
        device: of every parameter of the layer.
        shape: of the first-order layer's weight.
    """

    dtype: torch.dtype
    device: torch.device
    shape: torch.Size

    def __getattr__(self, name: str) -> NoReturn:
        # AttributeError tells hasattr and copy that there is no such attribute; others should read.
        raise AttributeError(f"{name}: {_REFUSAL}")

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any) -> NoReturn:
        """Refuse to be an argument of a torch function."""
        raise PassError(f"{getattr(function, '__name__', function)}: {_REFUSAL}")


_REFUSAL = (
    "a quadratic layer has weight_a, weight_b and so on in place of weight, of which only dtype, "
    "device and shape can be read; if other code needs it, exclude the layer from the rewrite"
)
