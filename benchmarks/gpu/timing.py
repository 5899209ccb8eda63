"""Times of several ways to compute the same on a GPU, taken in turns, and their peaks of memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["CudaTimer", "Result", "Timer", "cuda_peak", "race"]

MIB = 1 << 20
WARM_UP = 3
LAUNCH_CYCLES = 2_000_000
"""About a millisecond, in which the host queues a call's kernels."""

Timer = Callable[[Callable[[], Any]], float]
"""Returns the milliseconds that one call takes."""


@dataclass
class Result:
    """What one contestant took: milliseconds, MiB beyond what was there before, or an error."""

    ms: float | None = None
    peak_mib: float | None = None
    error: str = ""
    samples: list[float] = field(default_factory=list)


class CudaTimer:
    """Times one call by CUDA events, with nothing of its tensors left in the L2 cache.

    Args:
        hides_launches: hold the GPU back until the host has queued the call, so that the time is
            the kernels' alone; else launches count as far as the GPU waits for them.
    """

    def __init__(self, hides_launches: bool = True) -> None:
        cache = torch.cuda.get_device_properties().L2_cache_size
        self._flushed = torch.empty(max(2 * cache, 64 * MIB), dtype=torch.int8, device="cuda")
        self._hides = hides_launches

    def __call__(self, run: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self._flushed.zero_()
        if self._hides:
            torch.cuda._sleep(LAUNCH_CYCLES)
        else:
            torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


def cuda_peak(run: Callable[[], Any]) -> float:
    """Return the MiB that a call allocates at once beyond what is there before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def race(
    contestants: Mapping[str, Callable[[], Any]],
    rounds: int,
    timer: Timer,
    peak: Callable[[Callable[[], Any]], float],
) -> dict[str, Result]:
    """Warm each contestant up, measure its peak, then time all in turns; medians.

    A contestant that fails is out, and its result says why; the others go on.
    """
    results = {name: Result() for name in contestants}
    for name, run in contestants.items():
        try:
            for _ in range(WARM_UP):
                run()
            results[name].peak_mib = round(peak(run), 2)
        except Exception as error:  # a compiler or an allocator may raise anything at all
            results[name].error = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    running = [name for name, result in results.items() if not result.error]
    for _ in range(rounds):
        for name in running:
            results[name].samples.append(timer(contestants[name]))
    for name in running:
        results[name].ms = statistics.median(results[name].samples)
    return results
