"""What a Hadamard epilogue computes, and what it demands of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qcompile.config import choose
from qcompile.errors import DataError
from qcompile.triton_kernels.elementwise.activations import ACTIVATE

PRODUCTS = ("pair", "square", "none")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Spec:
    """What one call computes.

    Args:
        product: ``pair`` (gate(a)∘b), ``square`` (a∘a) or ``none`` (a).
        gate: activation of a.
        activation: of the end.
        channels: dimension of the channels.
        outer: whether the last constants are those of the combination.
    """

    product: str = "pair"
    gate: str = "none"
    activation: str = "none"
    channels: int = -1
    outer: bool = False

    def slots(self, has_c: bool) -> int:
        """Count the rows of the constants."""
        return 1 + (self.product == "pair") + has_c + self.outer


def check(a: Any, b: Any, c: Any, scales: Any, shifts: Any, spec: Spec) -> None:
    """Refuse tensors that do not fit each other.

    Raises:
        ConfigurationError: a name is unknown.
        DataError: shapes, types or devices differ, or there is a factor too many or too few.
    """
    choose("product", spec.product, PRODUCTS)
    choose("gate", spec.gate, ACTIVATE)
    choose("activation", spec.activation, ACTIVATE)
    if a.dtype not in DTYPES:
        raise DataError(f"hadamard: a must be floating point of 16, 32 or 64 bits, got {a.dtype}.")
    if (b is not None) != (spec.product == "pair"):
        number, what = ("two factors", "a tensor") if b is None else ("a alone", "None")
        raise DataError(f"hadamard: product={spec.product!r} takes {number}: b must be {what}.")
    if spec.gate != "none" and spec.product != "pair":
        raise DataError(
            f"hadamard: gate={spec.gate!r} needs two factors, and product is {spec.product!r}."
        )
    for name, x in (("b", b), ("c", c)):
        if x is not None and (x.shape != a.shape or x.dtype != a.dtype):
            raise DataError(
                f"hadamard: a is {a.dtype} {tuple(a.shape)} and {name} {x.dtype} "
                f"{tuple(x.shape)}: they must be alike. Convert or expand one of them."
            )
    for name, x in (("b", b), ("c", c), ("scales", scales), ("shifts", shifts)):
        if x is not None and x.device != a.device:
            raise DataError(
                f"hadamard: a is on {a.device} and {name} on {x.device}: move one of them."
            )
    if scales is not None or shifts is not None:
        _check_constants(a, scales, shifts, spec, c is not None)
    elif spec.outer:
        raise DataError("hadamard: outer=True needs scales and shifts, whose last row is its own.")


def _check_constants(a: Any, scales: Any, shifts: Any, spec: Spec, has_c: bool) -> None:
    if not -a.dim() <= spec.channels < a.dim():
        raise DataError(f"hadamard: channels={spec.channels} is no dimension of {tuple(a.shape)}.")
    if spec.outer and (scales is None or shifts is None):
        raise DataError("hadamard: outer=True needs both scales and shifts.")
    wanted = (spec.slots(has_c), a.shape[spec.channels])
    for name, x in (("scales", scales), ("shifts", shifts)):
        if x is not None and (x.shape != wanted or not x.is_floating_point()):
            raise DataError(
                f"hadamard: {name} must be floating point, {list(wanted)} (constants of each "
                f"branch by channel), got {x.dtype} {tuple(x.shape)}."
            )
