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


def input_tile(dtype: torch.dtype) -> Tile:
    """Return the tile of the gradient of x."""
    return Tile(128, 64, 32, 8) if dtype != torch.float32 else Tile(64, 64, 32, 8)


def weights_tile(dtype: torch.dtype) -> Tile:
    """Return the tile of the weights' gradients."""
    return Tile(64, 64, 32, 8) if dtype != torch.float32 else Tile(64, 32, 32, 4)
