"""How full the hash tables of a layer are, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TableReport"]


@dataclass(frozen=True)
class TableReport:
    """Hash tables as they are, all L together, and what the latest step found in them.

    Args:
        buckets: buckets of all tables.
        used: those that hold a neuron.
        mean: neurons of a bucket in use.
        median: of the same, like the next two.
        percentile_99: see ``median``.
        largest: see ``median``.
        dropped: neurons that full buckets turned away or pushed out, over all tables.
        table_bytes: memory of buckets.
        key_bytes: memory that incremental and spread re-hashes keep.
        lookup_bytes: memory of lookups.
        builds: times that the tables were built.
        rehashes: those that the schedule asked for.
        build_seconds: time of the latest build, all its slices together.
        hashed: neurons whose keys the latest build computed; the others had not changed.
        examples: of the latest step; 0 before the first.
        collisions: entries of buckets that an example read, on average.
        active: active neurons of an example, labels included, on average.
        active_least: of one example, as is the next.
        active_most: see ``active_least``.
    """

    buckets: int
    used: int
    mean: float
    median: int
    percentile_99: int
    largest: int
    dropped: int
    table_bytes: int
    key_bytes: int
    lookup_bytes: int
    builds: int
    rehashes: int
    build_seconds: float
    hashed: int
    examples: int
    collisions: float
    active: float
    active_least: int
    active_most: int

    @classmethod
    def of(cls, core: Any, builds: int, rehashes: int, seconds: float) -> TableReport:
        """Describe a built ``_core.LshTables``."""
        found, last = core.occupancy(), core.last_lookup()
        by_rows = found["buckets_by_rows"]
        by_rows_used = np.concatenate([[0], by_rows[1:]])
        used = int(by_rows_used.sum())
        below = np.cumsum(by_rows_used)

        def percentile(share: float) -> int:
            return int(np.searchsorted(below, share * used))

        examples = max(last["examples"], 1)
        return cls(
            buckets=int(by_rows.sum()),
            used=used,
            mean=float(by_rows @ np.arange(len(by_rows))) / used,
            median=percentile(0.5),
            percentile_99=percentile(0.99),
            largest=len(by_rows) - 1,
            dropped=found["dropped"],
            table_bytes=found["table_bytes"],
            key_bytes=found["key_bytes"],
            lookup_bytes=found["lookup_bytes"],
            builds=builds,
            rehashes=rehashes,
            build_seconds=seconds,
            hashed=core.hashed_rows,
            examples=last["examples"],
            collisions=last["collisions"] / examples,
            active=last["active"] / examples,
            active_least=last["least"],
            active_most=last["most"],
        )

    def __str__(self) -> str:
        memory = (self.table_bytes + self.key_bytes + self.lookup_bytes) / 2**20
        lines = [
            f"buckets     {self.used:,} of {self.buckets:,} in use, with {self.mean:.1f} neurons "
            f"(median {self.median}, 99 % {self.percentile_99}, largest {self.largest}); "
            f"{self.dropped:,} dropped",
            f"memory      {memory:.1f} MiB",
            f"built       {self.builds} times, {self.rehashes} by schedule; the latest took "
            f"{self.build_seconds:.3f} s and hashed {self.hashed:,} neurons",
        ]
        if self.examples:
            lines.append(
                f"an example  read {self.collisions:,.0f} entries, activated {self.active:.1f} "
                f"neurons ({self.active_least} to {self.active_most})"
            )
        return "\n".join(lines)
