"""Latency of models, measured in turns so that all meet the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

_LEAST, _MOST = 5, 100
SECONDS = 1.0
"""How long one comparison of two takes, where five calls of each are done by then."""


def interleaved(*calls: Callable[[], object], most: int = _MOST) -> list[float]:
    """Return the median milliseconds of one call of each, called in turns.

    Args:
        calls: what to time.
        most: how often each is called at most.
    """
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    deadline = time.perf_counter() + SECONDS * len(calls) / 2
    while len(times[0]) < _LEAST or (len(times[0]) < most and time.perf_counter() < deadline):
        for call, record in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            record.append((time.perf_counter() - start) * 1e3)
    return [median(record) for record in times]
