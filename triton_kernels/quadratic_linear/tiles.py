"""Tile sizes of the fused kernels, and what fits a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcompile.triton_kernels.quadratic_linear.forms import FORMS

GROUP = 8
"""Rows of tiles that neighbouring programs share, for the L2 cache."""

MOST_STAGES = 4


@dataclass(frozen=True)
class Tile:
    """A tile of the result, and the steps in which it is summed up.

    Args:
        rows: of the result.
        columns: of the result.
        step: how much of the summed dimension a step takes.
        warps: of a program.
    """

    rows: int
    columns: int
    step: int
    warps: int

    @property
    def name(self) -> str:
        """A text that names the tile in the cache of measurements."""
        return f"{self.rows}x{self.columns}x{self.step}x{self.warps}"

    def stages(self, lefts: int, rights: int, itemsize: int, shared: int) -> int:
        """Return how many steps may be in flight, 0 if the tile does not fit.

        Args:
            lefts: [rows, step] tiles of a step.
            rights: [step, columns] tiles of a step.
            itemsize: bytes of an element.
            shared: bytes of shared memory of a block.
        """
        step = (lefts * self.rows + rights * self.columns) * self.step * itemsize
        fitting = min(MOST_STAGES, shared // step)
        return fitting if fitting > 1 else 0


_HALF = (
    Tile(128, 64, 64, 8),
    Tile(64, 64, 64, 8),
    Tile(128, 128, 64, 8),
    Tile(128, 64, 32, 8),
    Tile(64, 32, 64, 4),
)
_SINGLE = (Tile(128, 64, 32, 8), Tile(64, 64, 32, 8), Tile(32, 32, 32, 4))
_EXACT = _SINGLE[1:]  # products without tensor cores take more registers

_MOST_ACCUMULATORS = 96
"""Registers of a thread that accumulators may take without spills."""


def products(form: str) -> int:
    """Return how many matrix products the forward pass of a form takes."""
    return len(FORMS[form].letters)


def product_tiles(form: str, dtype: torch.dtype, shared: int, precision: str) -> tuple[Tile, ...]:
    """Return the tiles of the fused products that fit, the likeliest first.

    Args:
        form: canonical name.
        dtype: of the tensors.
        shared: bytes of shared memory of a block.
        precision: of float32 products, ``tf32`` or ``ieee``.
    """
    count = products(form)
    single = _SINGLE if precision == "tf32" else _EXACT
    return tuple(
        tile
        for tile in (single if dtype == torch.float32 else _HALF)
        if tile.stages(1, count, dtype.itemsize, shared)
        and tile.rows * tile.columns * count <= _MOST_ACCUMULATORS * 32 * tile.warps
    )


def named_tile(name: str, form: str, dtype: torch.dtype, shared: int, precision: str) -> Tile:
    """Return the tile of this name, or the likeliest if there is none that fits."""
    known = product_tiles(form, dtype, shared, precision)
    return next((tile for tile in known if tile.name == name), known[0])


def towards_tile(tile: Tile, dtype: torch.dtype, activation: str) -> Tile:
    """Return the tile of the recomputation in the backward pass.

    The derivative of an activation keeps so much at hand that only a small tile does not spill.

    Args:
        tile: of the forward pass.
        dtype: of the tensors.
        activation: of the output.
    """
    if activation == "none":
        return tile
    return _SINGLE[-1] if dtype == torch.float32 else _HALF[-1]


NARROW = 128
"""Largest K of rows of x that fit a tile, so that products can be recomputed where they serve."""


@dataclass(frozen=True)
class GradientTile:
    """A tile of a gradient; the third size is that of a step of the sum.

    Args:
        rows: of x.
        columns: outputs of the layer.
        depth: inputs of the layer.
        warps: of a program.
        stages: steps in flight.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def is_narrow(dtype: torch.dtype, depth: int, activation: str) -> bool:
    """Return whether gradients can be computed from x alone without spills."""
    return dtype.itemsize == 2 and 0 < depth <= NARROW and activation == "none"


def _covering(depth: int, most: int) -> int:
    return min(most, max(32, 1 << (depth - 1).bit_length()))


def input_tile(form: str, dtype: torch.dtype, activation: str, depth: int) -> GradientTile:
    """Return the tile of the gradient of x; a step takes so many columns.

    What keeps registers busy makes it smaller: derivatives of an activation, a second sum for x∘x.
    """
    columns = 32 if activation == "none" else 16
    if dtype == torch.float32:
        return GradientTile(64, columns, _covering(depth, 64), 8, 2)
    rows = 128 if activation == "none" and not FORMS[form].squares else 64
    return GradientTile(rows, columns, _covering(depth, NARROW), 8, 2)


def weights_tile(
    form: str, dtype: torch.dtype, gate: str, activation: str, depth: int, recomputes: bool
) -> GradientTile:
    """Return the tile of the weights' gradients; a step takes so many rows."""
    if dtype == torch.float32:
        return GradientTile(32, 64, 32, 8, 2)
    gated_squares = FORMS[form].squares and gate != "none" and not recomputes
    if activation != "none" or gated_squares:
        return GradientTile(16, 64, _covering(depth, 64), 4, 3)
    rows = 32 if recomputes and gate == "none" else 16
    return GradientTile(rows, 64, _covering(depth, NARROW), 8, 3 if recomputes else 4)
