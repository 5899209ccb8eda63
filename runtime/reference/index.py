"""The packed layout of an output layer, in NumPy: ground truth of ``_core.pack_rows``.

Row ``w`` becomes int8 values ``q`` with ``scale · q ≈ w``, ``scale = max|w| / 127``, together with
an upper bound of ``‖w - scale · q‖₂``. The scan relies on that bound to lose nothing: by
Cauchy-Schwarz ``|w·x - scale · q·x| ≤ error · ‖x‖``.

Rows lie in blocks of 16; a block holds four consecutive coordinates of each of its rows, then the
next four: the operand order of AVX-512 VNNI and AMX. Missing rows and coordinates are zero.

The scan reads blocks as two planes of four bits: ``q + 128 = 16 h + l``, the plane of every ``h``
first. Two steps of four coordinates share bytes, the former in their low halves. With the first
plane alone rows are rough, ``16 h - 120`` in the place of ``q``, and the error is theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qcompile import ops
from qcompile.errors import DataError

_CHUNK_ROWS = 8192
_SMALLEST = np.finfo(np.float32).smallest_normal


class Packed(NamedTuple):
    """Quantised rows of a weight [N, d].

    Args:
        packed: uint8 [planes, ceil(N / 16), ceil(d / 8), 16, 4], of values in -127…127.
        scale: float32 [N], zero or a normal number.
        error: float32 [N], rounded up.
    """

    packed: NDArray[np.uint8]
    scale: NDArray[np.float32]
    error: NDArray[np.float32]


def pack(weight: NDArray[np.float32], planes: int = 2) -> Packed:
    """Quantise and pack ``weight`` [N, d], float32, into one plane or two.

    A row too small for a normal ``scale`` becomes zeros and is all error.

    Raises:
        DataError: not a float32 matrix, an empty one, or a value that is NaN or infinite.
    """
    weight = np.asarray(weight)
    if weight.ndim != 2 or weight.dtype != np.float32 or not weight.size:
        raise DataError(
            f"pack: expected a non-empty float32 matrix [N, d], "
            f"got {weight.dtype} of shape {list(weight.shape)}."
        )
    bad = ~np.isfinite(weight).all(axis=1)
    if bad.any():
        raise DataError(
            f"pack: row {int(bad.argmax())} of the weight holds NaN or infinity; "
            "such a layer cannot be quantised. Check that training did not diverge."
        )
    rows, depth = weight.shape
    blocks, steps = -(-rows // ops.BLOCK_ROWS), -(-depth // ops.BLOCK_DEPTH)
    padded = np.zeros((blocks * ops.BLOCK_ROWS, steps * ops.BLOCK_DEPTH), np.int8)
    scale, error = np.empty(rows, np.float32), np.empty(rows, np.float32)
    for start in range(0, rows, _CHUNK_ROWS):
        part = slice(start, min(start + _CHUNK_ROWS, rows))
        padded[part, :depth], scale[part] = _quantise(weight[part])
        kept = padded[part, :depth] if planes == 2 else _rough(padded[part, :depth])
        error[part] = _error(weight[part], scale[part], kept)
    blocked = padded.reshape(blocks, ops.BLOCK_ROWS, steps, ops.BLOCK_DEPTH)
    return Packed(split(blocked.transpose(0, 2, 1, 3))[:planes], scale, error)


def split(blocks: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return blocks [B, S, 16, 4] as two planes [2, B, ceil(S / 2), 16, 4]."""
    steps = blocks.shape[1]
    shifted = np.pad(blocks, ((0, 0), (0, steps % 2), (0, 0), (0, 0))).view(np.uint8) ^ 0x80
    former, latter = shifted[:, 0::2], shifted[:, 1::2]
    return np.stack([former >> 4 | latter & 0xF0, former & 0x0F | latter << 4])


def merge(planes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return planes [1 or 2, B, P, 16, 4] as blocks [B, 2 P, 16, 4]: rough rows, or the rows."""
    high = planes[0]
    low = planes[1] if len(planes) == 2 else np.full_like(high, 0x88)
    former, latter = high << 4 | low & 0x0F, high & 0xF0 | low >> 4
    both = np.stack([former, latter], axis=2) ^ np.uint8(0x80)
    return both.reshape(len(high), -1, *high.shape[2:]).view(np.int8)


def rows(packed: Packed, depth: int) -> NDArray[np.float64]:
    """Return the rows [N, d] that packed ones stand for."""
    values = unpack(merge(packed.packed), len(packed.scale), depth)
    return values.astype(np.float64) * packed.scale[:, None]


def unpack(packed: NDArray[np.int8], rows: int, depth: int) -> NDArray[np.int8]:
    """Return the quantised rows as a plain int8 matrix [rows, depth]."""
    blocks, steps, block_rows, block_depth = packed.shape
    flat = packed.transpose(0, 2, 1, 3).reshape(blocks * block_rows, steps * block_depth)
    return flat[:rows, :depth]


def _quantise(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    scale[scale < _SMALLEST] = 0
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    # The quotient of the largest value may round to just above 127; rounding brings it back.
    quantised = np.where(scale[:, None] > 0, np.rint(rows / divisor), np.float32(0))
    return quantised.astype(np.int8), scale


def _rough(quantised: NDArray[np.int8]) -> NDArray[np.int8]:
    return ((quantised.astype(np.int16) + 128 >> 4 << 4) - 120).astype(np.int8)


def _error(
    rows: NDArray[np.float32], scale: NDArray[np.float32], quantised: NDArray[np.int8]
) -> NDArray[np.float32]:
    # Exact in float64: a float32 less the product of a float32 and seven bits.
    residual = rows.astype(np.float64) - scale[:, None].astype(np.float64) * quantised
    total = np.zeros(len(rows))
    for column in residual.T:  # one after the other, as the C++ loop adds
        total += column * column
    return _round_up(np.sqrt(total) * (1 + (rows.shape[1] + 4) * 2**-52))


def _round_up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    above = np.nextafter(nearest, np.float32(np.inf))
    raised = np.where(nearest.astype(np.float64) < values, above, nearest)
    # No subnormal bound: a processor that flushes those to zero would take it for none.
    return np.where(values > 0, np.maximum(raised, _SMALLEST), np.float32(0)).astype(np.float32)
