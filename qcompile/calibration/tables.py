"""Hash tables to serve an output layer from: those that it was trained with, or others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompile.config import LSH
from qcompile.runtime.index import Index, build_lsh


@dataclass(frozen=True)
class Tables:
    """Which hash tables.

    Args:
        config: hash family, tables, hashes, bucket, policy and seed.
        draw: which hash functions of that seed; training may have drawn new ones.
        weight: float32 [N, d] of the layer that was trained with them; any layer without.
    """

    config: LSH
    draw: int = 0
    weight: NDArray[np.float32] | None = None

    def fit(self, weight: NDArray[np.float32]) -> bool:
        """Whether they are those of the layer with ``weight``."""
        return self.weight is None or np.array_equal(self.weight, weight)

    def build(self, weight: NDArray[np.float32], exact: Index) -> Index:
        """Put the rows of ``weight`` into them; ``exact`` is their index of the exact scan.

        Raises:
            DataError: they are too large.
        """
        c = self.config
        return build_lsh(
            weight,
            family=c.family,
            tables=c.tables,
            hashes=c.hashes_for(len(weight)),
            bucket=c.bucket,
            policy=c.policy,
            seed=c.seed,
            draw=self.draw,
            exact=exact,
        )
