"""Latency of two models, measured in turns so that both meet the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

_LEAST, _MOST = 5, 100
SECONDS = 1.0
"""How long one comparison takes, where five calls of each are done by then."""


def interleaved(before: Callable[[], object], after: Callable[[], object]) -> tuple[float, float]:
    """Return the median milliseconds of one call of each, called in turns."""
    before()
    after()
    times: tuple[list[float], list[float]] = ([], [])
    deadline = time.perf_counter() + SECONDS
    while len(times[0]) < _LEAST or (len(times[0]) < _MOST and time.perf_counter() < deadline):
        for call, record in zip((before, after), times, strict=True):
            start = time.perf_counter()
            call()
            record.append((time.perf_counter() - start) * 1e3)
    return median(times[0]), median(times[1])
