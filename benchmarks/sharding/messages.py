"""What a rank sends in a step, by the formula of docs/scaling.md."""

from __future__ import annotations

from collections.abc import Sequence

from sharding.problem import WIDTH

__all__ = ["formula", "hops"]


def formula(size: int, counts: Sequence[int], stored: Sequence[int], width: int) -> int:
    """Return the bytes that a rank sends in a step; docs/scaling.md derives it.

    Args:
        size: ranks.
        counts: examples of each.
        stored: entries of their features.
        width: labels of the example that has most.
    """
    others, most, total = size - 1, max(counts), sum(counts)
    message = max(4 * n + 8 * z for n, z in zip(counts, stored, strict=True))
    tables = 2 * others * 3 * 8
    gathered = others * (message + most * 4 * (WIDTH + width) + most * 4 * WIDTH)
    summed = 2 * 4 * total * others // size + 2 * 12 * total * others // size
    return tables + gathered + summed + (total - counts[0]) * 4 * WIDTH


def hops(size: int) -> int:
    """Return how many messages of a step follow one another: rings of gathers and reductions."""
    gathers, reductions, exchanges = 5, 2, 1
    return gathers * (size - 1) + reductions * 2 * (size - 1) + exchanges
