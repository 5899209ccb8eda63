"""Hash tables over an output layer's weights, and when to rebuild them."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from qcompile.config import LSH
from qcompile.errors import DataError
from qcompile.nn.table_report import TableReport
from qcompile.recompute import recomputing
from qcompile.runtime import _core

__all__ = ["HashTables"]

_LONGEST = 2**62  # steps between two re-hashes; keeps the schedule in int64
_MOST_SLICES = 2**20


class HashTables:
    """The tables of one layer, on SLIDE's schedule (MLSys 2020, section 4.2).

    Re-hash number i follows the one before it by N₀·e^{λi} training steps. By ``config`` it

    * hashes only the rows whose bytes have changed since they were hashed last (``incremental``),
      whoever changed them; the result equals a full re-hash, bit for bit;
    * takes place over several steps, a slice in each, in tables of its own, which then take the
      place of the present ones (``spread``; never beyond the next re-hash);
    * draws new hash functions (``renew``: at every so many re-hashes).

    Copies and pickles carry the place in the schedule, not the tables. When one is made, or the
    state saved, a re-hash under way is given up; original and copy alike rebuild their tables at
    the next training step, at once, and stay equal.

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
        self._seconds = 0.0
        self.steps = 0
        self.rehashes = 0
        self._next = config.rehash
        self._builds = 0

    def current(self, weight: Tensor) -> Any:
        """Return the tables for this training step, or None where none are needed.

        Args:
            weight: float32 or bfloat16 [N, d], contiguous, on the CPU.
        """
        c = self._config
        # With room for every neuron there is nothing to look up; with room for one, its label.
        needed = c.mode == "lsh" and 1 < c.active < self._shape[1]
        if recomputing() and self._core is not None:
            return self._core if needed else None  # it is to find what the first call found
        falls_due = self._follow_schedule()
        if not needed:
            return None
        if self._due or (falls_due and c.spread <= 1):
            self._build(weight)
        elif falls_due:
            self._core.begin(self._slices(), self._builds, self.draw)
            self._builds += 1
            self._seconds = 0.0
        if self._core.building:
            start = time.perf_counter()
            self._core.advance(weight, torch.get_num_threads())
            self._seconds += time.perf_counter() - start
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
                "hash tables: the extra state is not the four counts of a re-hash schedule (int64 "
                "[4], none negative); the checkpoint is damaged or of another layer."
            )
        self.steps, self.rehashes, self._next, self._builds = state.tolist()
        self.invalidate()

    def report(self) -> TableReport:
        """Describe the tables and what the latest step found in them.

        Raises:
            DataError: there are no tables yet.
        """
        if self._core is None or not self._core.built:
            raise DataError(
                "hash tables: there are none to describe yet; they are built at the first "
                'training step with mode="lsh" and 1 < active < the number of neurons.'
            )
        return TableReport.of(self._core, self._builds, self.rehashes, self._seconds)

    def _follow_schedule(self) -> bool:
        """Return whether a re-hash falls due at this step, and say when the next one will."""
        if self.steps < self._next:
            return False
        self.rehashes += 1
        growth = math.exp(min(self._config.rehash_decay * self.rehashes, 43.0))
        self._next += min(math.ceil(self._config.rehash * growth), _LONGEST)
        return True

    def _slices(self) -> int:
        return min(self._config.spread, self._next - self.steps, _MOST_SLICES)

    @property
    def draw(self) -> int:
        """The number of the draw of hash functions."""
        return self.rehashes // self._config.renew if self._config.renew else 0

    def _build(self, weight: Tensor) -> None:
        if self._core is None:
            c = self._config
            self._core = _core.LshTables(
                *self._shape,
                c.family,
                c.tables,
                c.hashes_for(self._shape[1]),
                c.bucket,
                c.policy,
                c.seed,
                incremental=c.incremental,
            )
        start = time.perf_counter()
        self._core.build(weight, self._builds, torch.get_num_threads(), self.draw)
        self._seconds = time.perf_counter() - start
        self._builds += 1
        self._due = False

    def __getstate__(self) -> dict[str, Any]:
        self.invalidate()
        return {**self.__dict__, "_core": None}
