"""Which way a call is computed: measured once for each kind of call, and remembered on disk.

Plain torch is always measured too, and kept unless another way is faster by more than
:data:`MARGIN`. Where nothing can be measured, while a graph is traced or captured, what was
measured before decides, or else the call's own rule.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qcompile.triton_kernels.tuning import precision

MARGIN = 0.03
"""Share of plain torch's time that another way has to save."""

MOST_BYTES = 4 << 20
"""Largest file of remembered choices that is read."""

Timer = Callable[[Callable[[], Any]], float]
"""Returns the seconds that a call of the function given takes."""


class Call(Protocol):
    """What the dispatcher has to know of a call."""

    def kind(self) -> tuple[Any, ...]:
        """Return what calls of one kind have in common; the device comes first."""

    def names(self) -> list[str]:
        """Return the ways that there are, ``plain`` among them."""

    def first(self) -> list[str]:
        """Return those that are measured first."""

    def then(self, seconds: dict[str, float]) -> list[str]:
        """Return those that are worth measuring after these."""

    def rule(self) -> str:
        """Return a way without measuring."""

    def run(self, name: str) -> None:
        """Compute the call in one way, for its time alone."""


class Choices:
    """What was chosen for each kind of call, in memory and in a file.

    Whatever is wrong with the file, it is as if there were none.

    Args:
        path: of the file, or ``None`` to remember nothing beyond this process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = self._read()

    def get(self, kind: str, allowed: Iterable[str]) -> str | None:
        """Return the way that a kind of call took, if it is known and one of ``allowed``."""
        name = self._known.get(kind, "")
        return name if name in allowed else None

    def put(self, kind: str, name: str) -> None:
        """Remember a way."""
        self._known = {**self._read(), **self._known, kind: name}
        if self._path is not None:
            with suppress(OSError):  # a full or read-only disk
                self._write(self._path)

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            if self._path.stat().st_size > MOST_BYTES:
                return {}
            found = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {kind: name for kind, name in found.items() if isinstance(name, str)}

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self._known, file, indent=0, sort_keys=True)
            Path(fresh).replace(path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise


class Dispatcher:
    """Chooses ways.

    Args:
        choices: what was chosen before.
        timer: measures a function.
    """

    def __init__(self, choices: Choices, timer: Timer) -> None:
        self._choices = choices
        self._timer = timer
        self._lock = threading.Lock()
        self._fast: dict[tuple[Any, ...], str] = {}

    def choose(self, call: Call, measure: bool = True) -> str:
        """Return the name of the way to compute a call.

        Args:
            call: the call; its tensors are read, and nothing is written to them.
            measure: whether an unknown kind of call may be measured, by making it repeatedly.
        """
        kind = call.kind()
        name = self._fast.get(kind)
        if name is not None:
            return name
        name = self._choices.get(_text(kind), call.names())
        if name is None and not measure:
            return call.rule()
        if name is None:
            with self._lock:
                name = self._fast.get(kind) or self._measured(call)
                self._choices.put(_text(kind), name)
        self._fast[kind] = name
        return name

    @torch.no_grad()
    def _measured(self, call: Call) -> str:
        seconds: dict[str, float] = {}
        for ways in (call.first, functools.partial(call.then, seconds)):
            for name in ways():
                seconds[name] = self._time(call, name)
        best = min(seconds, key=seconds.__getitem__)
        return best if seconds[best] < (1 - MARGIN) * seconds["plain"] else "plain"

    def _time(self, call: Call, name: str) -> float:
        run = functools.partial(call.run, name)
        if name == "plain":
            return self._timer(run)
        try:
            return self._timer(run)
        except Exception as error:
            if not _is_refusal(error):
                raise
            return float("inf")


def _is_refusal(error: Exception) -> bool:
    """Return whether a kernel cannot be compiled or launched here, or needs too much memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return type(error).__module__.startswith("triton.")


def hint(size: Any) -> int:
    """Return a size, or what it was when a compiler saw it, or -1 if nobody knows."""
    if isinstance(size, int):
        return size
    known = getattr(size.node, "hint", None)
    return -1 if known is None else int(known)


def name_of_kind(dtype: torch.dtype, rows: Any) -> tuple[str, str, int]:
    """Return the part of a kind of call that is the same for all operators.

    Returns:
        The type, the precision of its products, and the rows to the next power of two.
    """
    return str(dtype), precision(dtype), (hint(rows) - 1).bit_length()


def _text(kind: tuple[Any, ...]) -> str:
    """Return a kind of call as a key of the file: the device by what it is, not by its number."""
    device, *rest = kind
    return json.dumps([_device_name(device), *rest], separators=(",", ":"))


@functools.cache
def _device_name(device: torch.device) -> str:
    if device.type != "cuda" or not torch.cuda.is_available():
        return device.type
    properties = torch.cuda.get_device_properties(device)
    version = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, {version}, {properties.multi_processor_count}"


def cuda_seconds(run: Callable[[], Any]) -> float:
    """Return the median time of a call on the current CUDA stream, launches included."""
    run()  # compiles
    run()
    estimate = _event_seconds(run, 3)
    repetitions = max(1, min(20, int(2e-3 / max(estimate, 1e-7))))
    samples = sorted(_event_seconds(run, repetitions) for _ in range(7))
    return samples[len(samples) // 2]


def _event_seconds(run: Callable[[], Any], repetitions: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repetitions):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repetitions


def cache_path() -> Path | None:
    """Return the file of choices in Triton's own cache folder, or ``None`` without triton."""
    try:
        import triton
        from triton import knobs
    except ImportError:
        return None
    versions = f"{torch.__version__}-{triton.__version__}"
    return Path(knobs.cache.dir) / "qcompile" / f"choices-{versions}.json"


@functools.cache
def dispatcher() -> Dispatcher:
    """Return the dispatcher of this process."""
    return Dispatcher(Choices(cache_path()), cuda_seconds)


def can_measure(x: Tensor) -> bool:
    """Return whether a call may be made for its time alone: nobody watches, nothing is recorded."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    return (
        not isinstance(x, FakeTensor)
        and not torch.compiler.is_compiling()
        and _get_current_dispatch_mode() is None
        and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )
