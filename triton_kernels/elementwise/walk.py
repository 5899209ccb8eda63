"""How element-wise kernels walk through tensors: as matrices whose columns are adjacent in memory.

``device.py`` says what rows, columns and groups are. A tensor whose strides fit neither walk is
copied; slices of columns or channels, such as a part of a concatenated product, are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

ELEMENTS = 1024
"""Elements of a tile: eight for each thread of four warps, one load of 16 bytes in bf16. float64,
whose registers are twice as many, takes half."""

NUM_WARPS = 4

CHUNKS = 1024
"""Programs of a reduction, which determine its order: the same on every GPU."""

FLAT, LAST, PLANES = "flat", "last", "planes"


@dataclass(frozen=True)
class Walk:
    """The matrices of one launch.

    Args:
        kind: ``flat`` (one row, no channels), ``last`` or ``planes``.
        rows: of each matrix.
        columns: of each matrix.
        channels: number of channels, 1 if flat.
        channel: their dimension.
        align: largest power of two, at most 16, that divides columns and all strides.
        elements: of a tile.
    """

    kind: str
    rows: int
    columns: int
    channels: int
    channel: int
    align: int
    elements: int = ELEMENTS

    @cached_property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile: the widest one that wastes little of the columns."""
        if self.kind == FLAT:
            return 1, self.elements
        widths = [1 << power for power in range(5, 10)]
        padded = {width: -(-self.columns // width) * width for width in widths}
        fewest = min(padded.values())
        width = max(width for width in widths if padded[width] <= 1.25 * fewest)
        return self.elements // width, width

    @cached_property
    def groups(self) -> int:
        """Number of matrices, or of blocks of columns where these are channels."""
        return -(-self.columns // self.tile[1]) if self.kind == LAST else self.channels

    @cached_property
    def column_tiles(self) -> int:
        """Tiles beside each other within a group."""
        return 1 if self.kind == LAST else -(-self.columns // self.tile[1])

    @cached_property
    def tiles(self) -> int:
        """Tiles of a group."""
        return -(-self.rows // self.tile[0]) * self.column_tiles

    @cached_property
    def per_chunk(self) -> int:
        """Tiles that one program of a reduction takes."""
        return -(-self.tiles // max(1, min(self.tiles, CHUNKS // self.groups)))

    @property
    def chunks(self) -> int:
        """Programs of a group in a reduction."""
        return -(-self.tiles // self.per_chunk)

    @property
    def count(self) -> int:
        """Elements of one channel."""
        return self.rows if self.kind == LAST else self.rows * self.columns

    def empty(self, like: Tensor) -> Tensor:
        """Return memory without gaps that this walk fits, of the shape and type of ``like``."""
        if self.kind == FLAT:
            return torch.empty_like(like)
        if self.kind == PLANES:
            return torch.empty_like(like, memory_format=torch.contiguous_format)
        shape = [*like.shape[: self.channel], *like.shape[self.channel + 1 :], self.channels]
        return like.new_empty(shape).movedim(-1, self.channel)

    def sizes(self) -> dict[str, Any]:
        """Return the arguments that every kernel takes."""
        height, width = self.tile
        return {
            "rows": self.rows,
            "units": self.columns // self.align,
            "groups": self.groups,
            "column_tiles": self.column_tiles,
            "channels": self.channels,
            "channels_last": self.kind == LAST,
            "align": self.align,
            "R": height,
            "L": width,
            "num_warps": NUM_WARPS,
        }

    def strides(self, name: str, x: Tensor | None) -> dict[str, int]:
        """Return the arguments that say how one tensor lies; those of an absent one are unused."""
        row, group = (0, 0) if x is None else _require(x, self.kind, self.channel)
        return {f"{name}_row": row // self.align, f"{name}_group": group // self.align}


def walk_over(
    tensors: Sequence[Tensor | None], channel: int | None
) -> tuple[Walk, list[Tensor | None]]:
    """Decide how to walk through tensors of one shape, and copy those that do not fit.

    Args:
        tensors: the inputs; the first is there, others may be ``None``.
        channel: dimension of the channels, or ``None`` if there are no constants of channels.

    Returns:
        The walk, and the tensors, copied where needed.
    """
    first = tensors[0]
    assert first is not None
    present = [x for x in tensors if x is not None]
    elements = ELEMENTS // 2 if first.dtype == torch.float64 else ELEMENTS
    if channel is None and _alike_and_dense(present):
        count = first.numel()
        align = _power_of_two([count])
        return Walk(FLAT, 1, count, 1, 0, align, elements), list(tensors)
    kind, channel = _choose(present, None if channel is None else channel % first.dim())
    rows, columns = _matrix(first.shape, kind, channel)
    channels = first.shape[channel]
    walk = Walk(kind, rows, columns, channels, channel, 1, elements)
    fitting = [
        x if x is None or _fit(x, kind, channel) is not None else walk.empty(x).copy_(x)
        for x in tensors
    ]
    numbers = [columns, channels * columns if kind == PLANES else columns]  # of what is dense
    for x in fitting:
        numbers += [] if x is None else _require(x, kind, channel)
    return replace(walk, align=_power_of_two(numbers)), fitting


def _choose(present: Sequence[Tensor], channel: int | None) -> tuple[str, int]:
    """Return the kind of walk, and the dimension of channels, that needs the fewest copies."""
    first = present[0]
    if channel is None:
        candidates = [(LAST, first.dim() - 1), (PLANES, min(1, first.dim() - 1))]
        candidates += [(LAST, 1)] if first.dim() > 2 else []
    else:
        candidates = [(LAST, channel), (PLANES, channel)]
        if first.shape[channel] == 1:  # columns of one element would be no columns
            candidates.reverse()
    scores = [sum(_fit(x, *candidate) is not None for x in present) for candidate in candidates]
    if not any(scores):  # all will be copied: to contiguous ones
        return candidates[0] if channel in (None, first.dim() - 1) else (PLANES, candidates[0][1])
    return candidates[scores.index(max(scores))]


def _matrix(shape: Sequence[int], kind: str, channel: int) -> tuple[int, int]:
    """Return rows and columns."""
    before, after = _product(shape[:channel]), _product(shape[channel + 1 :])
    return (before * after, shape[channel]) if kind == LAST else (before, after)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _fit(x: Tensor, kind: str, channel: int) -> tuple[int, int] | None:
    """Return the strides of rows and groups, or ``None`` if x is no such matrix."""
    sizes, strides = list(x.shape), list(x.stride())
    if kind == FLAT:
        return 0, 0
    own, apart = sizes.pop(channel), strides.pop(channel)
    if kind == LAST:
        row = _collapsed(sizes, strides)
        return None if row is None or (own > 1 and apart != 1) else (row, 0)
    inner = _collapsed(sizes[channel:], strides[channel:])
    row = _collapsed(sizes[:channel], strides[:channel])
    if inner is None or row is None or (_product(sizes[channel:]) > 1 and inner != 1):
        return None
    return row, apart if own > 1 else 0


def _require(x: Tensor, kind: str, channel: int) -> tuple[int, int]:
    strides = _fit(x, kind, channel)
    assert strides is not None, (x.shape, x.stride(), kind, channel)
    return strides


def _collapsed(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the stride of dimensions as one (0 of one element), ``None`` if they are not."""
    pairs = [pair for pair in zip(sizes, strides, strict=True) if pair[0] != 1]
    if not pairs:
        return 0
    for (_, outer), (size, inner) in pairwise(pairs):
        if outer != size * inner:
            return None
    return pairs[-1][1]


def _alike_and_dense(tensors: Sequence[Tensor]) -> bool:
    """Return whether tensors lie alike, without gaps or overlaps."""
    first = tensors[0]
    wanted = _meaningful(first)
    if any(_meaningful(x) != wanted for x in tensors[1:]):
        return False
    expected = 1
    for stride, size in sorted(wanted):
        if stride != expected:
            return False
        expected *= size
    return True


def _meaningful(x: Tensor) -> list[tuple[int, int]]:
    """List strides and sizes of the dimensions that have more than one index."""
    return [(n, size) for n, size in zip(x.stride(), x.shape, strict=True) if size != 1]


def _power_of_two(numbers: Sequence[int]) -> int:
    """Return the largest power of two, at most 16, that divides all numbers."""
    align = 16
    while any(number % align for number in numbers):
        align //= 2
    return align
