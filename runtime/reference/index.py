"""The packed layout of an output layer, in NumPy: ground truth of ``_core.pack_rows``.

Row ``w`` becomes int8 values ``q`` with ``scale · q ≈ w``, ``scale = max|w| / 127``, together with
an upper bound of ``‖w - scale · q‖₂``. The scan relies on that bound to lose nothing: by
Cauchy-Schwarz ``|w·x - scale · q·x| ≤ error · ‖x‖``.

Rows lie in blocks of 16; a block holds four consecutive coordinates of each of its rows, then the
next four: the operand order of AVX-512 VNNI and AMX. Missing rows and coordinates are zero.
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
        packed: int8 [ceil(N / 16), ceil(d / 4), 16, 4], values in -127…127.
        scale: float32 [N], zero or a normal number.
        error: float32 [N], rounded up.
    """

    packed: NDArray[np.int8]
    scale: NDArray[np.float32]
    error: NDArray[np.float32]


def pack(weight: NDArray[np.float32]) -> Packed:
    """Quantise and pack ``weight`` [N, d], float32.

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
        padded[part, :depth], scale[part], error[part] = _quantise(weight[part])
    blocked = padded.reshape(blocks, ops.BLOCK_ROWS, steps, ops.BLOCK_DEPTH)
    return Packed(np.ascontiguousarray(blocked.transpose(0, 2, 1, 3)), scale, error)


def unpack(packed: NDArray[np.int8], rows: int, depth: int) -> NDArray[np.int8]:
    """Return the quantised rows as a plain int8 matrix [rows, depth]."""
    blocks, steps, block_rows, block_depth = packed.shape
    flat = packed.transpose(0, 2, 1, 3).reshape(blocks * block_rows, steps * block_depth)
    return flat[:rows, :depth]


def _quantise(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    scale[scale < _SMALLEST] = 0
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    # The quotient of the largest value may round to just above 127; rounding brings it back.
    quantised = np.where(scale[:, None] > 0, np.rint(rows / divisor), np.float32(0))
    # Exact in float64: a float32 less the product of a float32 and seven bits.
    residual = rows.astype(np.float64) - scale[:, None].astype(np.float64) * quantised
    total = np.zeros(len(rows))
    for column in residual.T:  # one after the other, as the C++ loop adds
        total += column * column
    depth = rows.shape[1]
    return quantised.astype(np.int8), scale, _round_up(np.sqrt(total) * (1 + (depth + 4) * 2**-52))


def _round_up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    above = np.nextafter(nearest, np.float32(np.inf))
    raised = np.where(nearest.astype(np.float64) < values, above, nearest)
    # No subnormal bound: a processor that flushes those to zero would take it for none.
    return np.where(values > 0, np.maximum(raised, _SMALLEST), np.float32(0)).astype(np.float32)
