"""Short codes of the rows of cells, in NumPy: ground truth of ``_core.code_cells``.

A row is its cell's packed centroid plus ``scale * level`` in every coordinate, where the level of a
code of ``bits`` bits is an odd number between ``1 - 2**bits`` and ``2**bits - 1``. Scale and
levels are chosen in turn for the least squared error, from those of a normal distribution (Max,
"Quantizing for minimum distortion", 1960). The last scale is the one with which the product of the
coded difference and the true one is the square of the true one: rows that score best are like the
hidden vector, and the least squares would sell them short (Gao and Long, "RaBitQ: Quantizing
High-Dimensional Vectors", SIGMOD 2024, section 3.2).

Blocks have 16 rows, and four consecutive coordinates of each side by side, as packed rows have. A
byte holds ``8 / bits`` codes, ``c`` for the level ``2 c + 1 - 2**bits``, the first in its lowest
bits, each four coordinates after the one before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qcompile import ops

_HALF_STEP = {2: 0.4978, 4: 0.1676}
_ROUNDS = 3


class Coded(NamedTuple):
    """Coded differences [n, d]: int32 levels [n, d], and float32 scale and error [n]."""

    levels: NDArray[np.int32]
    scale: NDArray[np.float32]
    error: NDArray[np.float64]


def code(apart: NDArray[np.float64], bits: int) -> Coded:
    """Code how far rows are from their centroids, float64 [n, d]."""
    count = 1 << bits
    scale = (_HALF_STEP[bits] * np.sqrt(np.square(apart).mean(axis=1))).astype(np.float32)
    levels = np.ones(apart.shape, np.int32)
    for number in range(_ROUNDS):
        fits = scale >= np.finfo(np.float32).smallest_normal
        half = 0.5 / np.where(fits, scale, 1)
        codes = np.clip(np.floor(apart * half[:, None] + count / 2), 0, count - 1).astype(np.int32)
        levels = 2 * codes + 1 - count
        products = (apart * levels).sum(axis=1)
        best = products / np.square(levels).sum(axis=1)
        if number == _ROUNDS - 1:
            best = np.square(apart).sum(axis=1) / np.where(fits, products, 1)
        scale = np.where(fits, best, 0).astype(np.float32)
    error = np.linalg.norm(apart - scale[:, None].astype(np.float64) * levels, axis=1)
    return Coded(levels, scale, error)


def decode(codes: NDArray[np.uint8], rows: int, depth: int, bits: int) -> NDArray[np.int32]:
    """Return the levels [rows, depth] of blocks of codes [B, S, 16, 4]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    planes = codes[:, :, None] >> shifts[:, None, None] & ((1 << bits) - 1)
    whole = planes.transpose(0, 3, 1, 2, 4).reshape(len(codes) * ops.BLOCK_ROWS, -1)
    return 2 * whole[:rows, :depth].astype(np.int32) + 1 - (1 << bits)
