"""Hash tables over an output layer's weights, and when to rebuild them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qcompile.config import LSH
from qcompile.errors import DataError
from qcompile.runtime import _core

__all__ = ["HashTables"]

_LONGEST = 2**62  # steps between two re-hashes; keeps the schedule in int64


class HashTables:
    """The tables of one layer, on SLIDE's schedule (MLSys 2020, section 4.2).

    Re-hash number i follows the one before it by N₀·e^{λi} training steps. Copies and pickles
    carry the place in the schedule, not the tables; after one is made, original and copy alike
    rebuild theirs at the next training step and stay equal.

    Args:
        config: hash family, tables and schedule.
        dimension: d, the width of the weight matrix.
        neurons: N, its rows.

    Attributes:
        steps: training steps so far.
        rehashes: rebuilds that the schedule has asked for.
    """

    def __init__(self, config: LSH, dimension: int, neurons: int) -> None:
        self._config = config
        self._shape = (dimension, neurons)
        self._core: Any = None
        self._due = True
        self.steps = 0
        self.rehashes = 0
        self._next = config.rehash
        self._builds = 0

    def current(self, weight: Tensor) -> Any:
        """Return the tables for this training step, or None where none are needed.

        Args:
            weight: float32 [N, d], contiguous, on the CPU.
        """
        if self.steps >= self._next:
            self.rehashes += 1
            growth = math.exp(min(self._config.rehash_decay * self.rehashes, 43.0))
            self._next += min(math.ceil(self._config.rehash * growth), _LONGEST)
            self._due = True
        # With room for every neuron there is nothing to look up; with room for one, its label.
        if self._config.active >= self._shape[1] or self._config.active == 1:
            return None
        if self._due:
            self._build(weight)
        return self._core

    def advance(self) -> None:
        """Count one training step."""
        self.steps += 1

    def invalidate(self) -> None:
        """Have the tables rebuilt at the next training step."""
        self._due = True

    def save(self) -> Tensor:
        """Return the place in the schedule as int64 [4]; the tables become due."""
        self.invalidate()
        return torch.tensor([self.steps, self.rehashes, self._next, self._builds])

    def load(self, state: Tensor) -> None:
        """Go to a place in the schedule.

        Raises:
            DataError: ``state`` is not what :meth:`save` returns.
        """
        valid = isinstance(state, Tensor) and state.dtype == torch.int64 and state.shape == (4,)
        if not valid or (state < 0).any():
            raise DataError(
                "LSHLinear: the extra state is not the four counts of a re-hash schedule (int64 "
                "[4], none negative); the checkpoint is damaged or of another layer."
            )
        self.steps, self.rehashes, self._next, self._builds = state.tolist()
        self.invalidate()

    def _build(self, weight: Tensor) -> None:
        threads = torch.get_num_threads()
        if self._core is None:
            c = self._config
            hashes = c.hashes_for(self._shape[1])
            self._core = _core.LshTables(
                *self._shape, c.family, c.tables, hashes, c.bucket, c.policy, c.seed
            )
        self._core.build(weight, self._builds, threads)
        self._builds += 1
        self._due = False

    def __getstate__(self) -> dict[str, Any]:
        self.invalidate()
        return {**self.__dict__, "_core": None}
