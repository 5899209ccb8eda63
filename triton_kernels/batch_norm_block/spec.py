"""What a normalised block computes, and what it demands of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.config import choose
from qcompile.errors import DataError
from qcompile.triton_kernels.elementwise.activations import ACTIVATE
from qcompile.triton_kernels.hadamard.spec import DTYPES, PRODUCTS

NORMS = ("branch", "outer", "both")


@dataclass(frozen=True)
class Spec:
    """What one call computes.

    Args:
        product: ``pair`` (a∘b), ``square`` (a∘a) or ``none`` (a).
        norms: where batch norms are: ``branch``, ``outer`` or ``both``.
        activation: of the end.
        channels: dimension of the channels.
        momentum: weight of the batch in the running statistics.
        eps: added to the variances.
    """

    product: str = "pair"
    norms: str = "branch"
    activation: str = "none"
    channels: int = 1
    momentum: float = 0.1
    eps: float = 1e-5

    @property
    def of_branches(self) -> bool:
        """Whether each branch is normalised."""
        return self.norms != "outer"

    @property
    def outer(self) -> bool:
        """Whether the combination is normalised."""
        return self.norms != "branch"

    def has_c(self, count: int) -> bool:
        """Return whether the last of so many branches is added."""
        return count > (2 if self.product == "pair" else 1)

    def count(self, branches: int) -> int:
        """Count the batch norms."""
        return branches * self.of_branches + self.outer


def check(
    values: Sequence[Any],
    weights: Sequence[Any],
    biases: Sequence[Any],
    running: Sequence[Any],
    spec: Spec,
) -> None:
    """Refuse tensors that do not fit each other.

    Raises:
        ConfigurationError: a name is unknown.
        DataError: numbers, shapes, types or devices of tensors do not fit.
    """
    choose("product", spec.product, PRODUCTS)
    choose("norms", spec.norms, NORMS)
    choose("activation", spec.activation, ACTIVATE)
    fewest = 2 if spec.product == "pair" else 1
    if not fewest <= len(values) <= fewest + 1:
        raise DataError(
            f"batch_norm_block: product={spec.product!r} takes {fewest} or {fewest + 1} values, "
            f"got {len(values)}."
        )
    first = values[0]
    if first.dtype not in DTYPES or not -first.dim() <= spec.channels < first.dim():
        raise DataError(
            f"batch_norm_block: values must be floating point with a dimension "
            f"{spec.channels} of channels, got {first.dtype} {tuple(first.shape)}."
        )
    for x in values[1:]:
        if (x.shape, x.dtype, x.device) != (first.shape, first.dtype, first.device):
            raise DataError(
                f"batch_norm_block: values must be alike, got {first.dtype} {tuple(first.shape)} "
                f"on {first.device} and {x.dtype} {tuple(x.shape)} on {x.device}."
            )
    channels = first.shape[spec.channels]
    if first.numel() <= channels:
        raise DataError(
            f"batch_norm_block: statistics need more than one value of each channel, got "
            f"{tuple(first.shape)} with {channels} channels."
        )
    count = spec.count(len(values))
    for name, tensors, wanted in (
        ("weights", weights, (0, count)),
        ("biases", biases, (0, count)),
        ("running", running, (0, 2 * count)),
    ):
        if len(tensors) not in wanted:
            raise DataError(
                f"batch_norm_block: {name} must have {wanted[1]} tensors or none, "
                f"got {len(tensors)}."
            )
        for x in tensors:
            if x.shape != (channels,) or x.device != first.device:
                raise DataError(
                    f"batch_norm_block: {name} must be [{channels}] on {first.device}, got "
                    f"{tuple(x.shape)} on {x.device}."
                )
