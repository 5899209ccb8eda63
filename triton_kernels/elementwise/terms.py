"""What the element-wise kernels compute, apart from how they walk."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qcompile.triton_kernels.elementwise.walk import Walk


@dataclass(frozen=True)
class Term:
    """act(gate(a)∘b + c), or one of its simpler relatives.

    Args:
        product: ``pair`` (gate(a)∘b), ``square`` (a∘a) or ``none`` (a).
        gate: activation of a, by name.
        activation: of the whole, by name.
    """

    product: str = "pair"
    gate: str = "none"
    activation: str = "none"


@dataclass(frozen=True)
class Branches:
    """The tensors that are combined, of one shape and type; b and c may be absent."""

    a: Tensor
    b: Tensor | None
    c: Tensor | None

    @property
    def present(self) -> list[Tensor]:
        """Those that there are; their places are the slots of their constants."""
        return [x for x in (self.a, self.b, self.c) if x is not None]

    @property
    def by_letter(self) -> dict[str, Tensor]:
        """Those that there are."""
        pairs = zip("abc", (self.a, self.b, self.c), strict=True)
        return {name: x for name, x in pairs if x is not None}

    def pointers(self) -> dict[str, Tensor]:
        """Return the kernels' arguments; absent tensors are never read."""
        pairs = zip("abc", (self.a, self.b, self.c), strict=True)
        return {f"{name}_ptr": self.a if x is None else x for name, x in pairs}

    def strides(self, walk: Walk) -> dict[str, int]:
        """Return the kernels' arguments."""
        found: dict[str, int] = {}
        for name, x in zip("abc", (self.a, self.b, self.c), strict=True):
            found |= walk.strides(name, x)
        return found


@dataclass(frozen=True)
class Constants:
    """x becomes x·scale + shift: constants of channels, [slots, C] each, or ``None``.

    Slots are the branches that there are, in order, and then the outer batch norm. Contiguous, in
    the type to compute in or that of the branches.

    Args:
        scale: what is multiplied by.
        shift: what is added.
        mean: of a batch norm.
        rstd: one over its standard deviation.
        slope: for the backward pass, by which x is multiplied and added to the gradient.
        offset: what is added to that.
        of_branches: whether the branches have constants, or the outer batch norm alone.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    mean: Tensor | None = None
    rstd: Tensor | None = None
    slope: Tensor | None = None
    offset: Tensor | None = None
    of_branches: bool = True

    @property
    def affine(self) -> str:
        """Which ones there are, as the kernels call it."""
        if not self.of_branches:
            return "none"
        if self.scale is not None:
            return "scale" if self.shift is None else "full"
        return "none" if self.shift is None else "shift"

    def pointers(self, stand_in: Tensor) -> dict[str, Tensor]:
        """Return the kernels' arguments; absent constants are never read."""
        return {
            "scale_ptr": stand_in if self.scale is None else self.scale,
            "shift_ptr": stand_in if self.shift is None else self.shift,
        }

    def slopes(self, stand_in: Tensor) -> dict[str, Tensor]:
        """Return further arguments of the kernels of the backward pass."""
        return {
            "slope_ptr": stand_in if self.slope is None else self.slope,
            "offset_ptr": stand_in if self.offset is None else self.offset,
        }

    def slots(self, first: int, count: int) -> Constants:
        """Return those of some slots in a row."""
        scale, shift, mean, rstd, slope, offset = (
            None if x is None else x.narrow(0, first, count)
            for x in (self.scale, self.shift, self.mean, self.rstd, self.slope, self.offset)
        )
        return Constants(scale, shift, mean, rstd, slope, offset)
