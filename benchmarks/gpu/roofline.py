"""How fast a call could be at best: the device's measured rates, and the least work of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpu.timing import Timer

__all__ = ["Ceilings", "Work", "measure_ceilings"]

COPIED = 1 << 30
SIDE = 8192
ROUNDS = 15


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of one device.

    Args:
        bytes_per_ms: read and written by a large copy.
        operations_per_ms: of a large product of torch's, two for each multiply-add.
    """

    bytes_per_ms: float
    operations_per_ms: float


@dataclass(frozen=True)
class Work:
    """The least that a call has to do.

    Args:
        operations: of its products, two for each multiply-add.
        moved: bytes, each tensor read or written once.
    """

    operations: int
    moved: int

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.moved + other.moved)

    def floor_ms(self, ceilings: Ceilings) -> float:
        """Return the time below which no kernel gets on this device."""
        return max(self.operations / ceilings.operations_per_ms, self.moved / ceilings.bytes_per_ms)


def measure_ceilings(timer: Timer, dtype: torch.dtype, device: str = "cuda") -> Ceilings:
    """Copy a GiB and multiply two large matrices of random numbers; the best of several times."""
    source = torch.empty(COPIED, dtype=torch.int8, device=device).random_()
    target = torch.empty_like(source)
    copying = [timer(lambda: target.copy_(source)) for _ in range(ROUNDS)]
    left, right = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    multiplying = [timer(lambda: left @ right) for _ in range(ROUNDS)]
    # The first of each may set something up.
    return Ceilings(2 * COPIED / min(copying[1:]), 2 * SIDE**3 / min(multiplying[1:]))
