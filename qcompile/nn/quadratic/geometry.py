"""The geometry of a convolution: checked once, shared by every branch of a layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it

from qcompile.config import choose
from qcompile.errors import ConfigurationError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

IntOrInts = int | Sequence[int]


def _per_dimension(name: str, value: IntOrInts, dims: int, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) == 1:
        values *= dims
    if len(values) != dims or not all(isinstance(v, int) and v >= least for v in values):
        raise ConfigurationError(
            f"QuadraticConv{dims}d: {name} must be an integer ≥ {least}, or {dims} of them, "
            f"got {value!r}."
        )
    return values


@dataclass(frozen=True)
class Geometry:
    """Where a convolution's kernel reads its input; fields are those of ``torch.nn.Conv2d``."""

    dims: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @classmethod
    def checked(
        cls,
        dims: int,
        kernel_size: IntOrInts,
        stride: IntOrInts,
        padding: str | IntOrInts,
        dilation: IntOrInts,
        groups: int,
        padding_mode: str,
    ) -> Geometry:
        """Expand integers to one per dimension.

        Raises:
            ConfigurationError: a value that no convolution can have.
        """
        strides = _per_dimension("stride", stride, dims, 1)
        if isinstance(padding, str):
            padding = choose("padding", padding, ("same", "valid"))
            if padding == "same" and any(step != 1 for step in strides):
                raise ConfigurationError(
                    f"QuadraticConv{dims}d: padding='same' needs stride 1, got {strides}; "
                    f"give the padding as integers."
                )
        else:
            padding = _per_dimension("padding", padding, dims, 0)
        return cls(
            dims,
            _per_dimension("kernel_size", kernel_size, dims, 1),
            strides,
            padding,
            _per_dimension("dilation", dilation, dims, 1),
            groups,
            choose("padding_mode", padding_mode, PADDING_MODES),
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """Distance from the kernel's first to its last tap, per dimension."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))

    @property
    def margins(self) -> list[int]:
        """Padding as ``torch.nn.functional.pad`` takes it: last dimension first, low and high."""
        if self.padding == "valid":
            pairs = [(0, 0)] * self.dims
        elif self.padding == "same":
            pairs = [(reach // 2, reach - reach // 2) for reach in self.reach]
        else:
            pairs = [(int(p), int(p)) for p in self.padding]
        return [margin for pair in reversed(pairs) for margin in pair]

    @property
    def even_padding(self) -> list[int]:
        """Padding that the convolution itself adds, per dimension, where it is the same each side.

        What :meth:`pad_by_mode` adds is not counted; where the sides differ see
        :attr:`uneven_margins`.
        """
        zeros = self.padding_mode == "zeros"
        return self.margins[-2::-2] if zeros else [0] * self.dims

    @property
    def uneven_margins(self) -> list[int]:
        """The margins of zeros where a low and a high one differ, otherwise empty."""
        margins = self.margins
        uneven = self.padding_mode == "zeros" and margins[::2] != margins[1::2]
        return margins if uneven else []

    def fits(self, spatial: Sequence[int]) -> bool:
        """Return whether the kernel fits in an input of this size, :meth:`pad_by_mode` done."""
        margins = self.margins if self.padding_mode == "zeros" else [0] * (2 * self.dims)
        both = [low + high for low, high in zip(margins[-2::-2], margins[::-2], strict=True)]
        return all(
            size + margin > reach
            for size, margin, reach in zip(spatial, both, self.reach, strict=True)
        )

    def pad_by_mode(self, x: Any) -> Any:
        """Pad ``x`` [..., C, *spatial] if the padding is anything but zeros.

        Zeros are left to the convolution, as ``torch.nn.Conv2d`` does, so that both compute the
        same bits.
        """
        if self.padding_mode == "zeros":
            return x
        return F.pad(x, self.margins, mode=self.padding_mode)

    @property
    def padded(self) -> Geometry:
        """The geometry of what :meth:`pad_by_mode` returns, with nothing left to pad by mode."""
        if self.padding_mode == "zeros":
            return self
        return replace(self, padding=(0,) * self.dims, padding_mode="zeros")

    def convolve(self, padded: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """Convolve the result of :meth:`pad_by_mode` with ``weight`` [O, C/groups, *kernel]."""
        padding: Any = self.padding if self.padding_mode == "zeros" else 0
        return _CONVOLUTION[self.dims](
            padded, weight, bias, self.stride, padding, self.dilation, self.groups
        )

    def patches(self, padded: Any) -> Any:
        """Return what each output position sees: [..., *positions, groups, n].

        n = C/groups · ∏kernel, in the order of a convolution weight's rows. Made of slices alone,
        whose bounds do not depend on the input's size, so that it can be traced and exported.
        """
        if self.padding_mode == "zeros":
            padded = F.pad(padded, self.margins)
        channel = -self.dims - 1
        taps = itertools.product(*(range(k) for k in self.kernel_size))
        seen = [padded[(..., *self._slices(tap))] for tap in taps]
        stacked = torch.stack(seen, dim=channel).flatten(channel - 1, channel)
        grouped = stacked.unflatten(channel, (self.groups, -1))
        return grouped.movedim((channel - 1, channel), (-2, -1))

    def _slices(self, tap: tuple[int, ...]) -> list[slice]:
        """Return, per dimension, the inputs that one tap of the kernel meets over all positions."""
        slices = []
        for index, dilation, reach, stride in zip(
            tap, self.dilation, self.reach, self.stride, strict=True
        ):
            start = index * dilation
            slices.append(slice(start, start - reach or None, stride))
        return slices
