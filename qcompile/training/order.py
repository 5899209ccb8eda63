"""The order of the examples: a permutation that is computed, not stored.

A Feistel network over pairs of half-words is a bijection whatever its round function is (Luby and
Rackoff, SIAM J. Comput. 1988); walking along its cycles until a value is below n restricts it to n
examples (Black and Rogaway, CT-RSA 2002). A place in an epoch is then one number, and costs no
memory at any n; and the order does not depend on the release of any library.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Permutation"]

_ROUNDS = 6
_MASK = 2**64 - 1


class Permutation:
    """A permutation of 0 … n-1.

    Args:
        size: n ≥ 1.
        seed: with ``epoch`` chooses the permutation.
        epoch: see ``seed``.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self._size = size
        self._half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
        key = _mix(np.array([(seed * 0x9E3779B97F4A7C15 + epoch) & _MASK], np.uint64))
        rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64)
        self._keys = _mix(key + rounds * np.uint64(0xD1B54A32D192ED03))

    def __len__(self) -> int:
        return self._size

    def __call__(self, begin: int, end: int) -> np.ndarray:
        """Return the images of ``begin`` … ``end`` - 1, cut off at n, as int64."""
        values = np.arange(begin, min(end, self._size), dtype=np.uint64)
        outside = np.arange(len(values))
        while len(outside):
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self._size]
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        half = np.uint64(self._half)
        mask = np.uint64((1 << self._half) - 1)
        left, right = values >> half, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply the finaliser of splitmix64; products wrap around on purpose."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
