"""Tries on a stranger's graph, in a child process, what might end the process that tries it.

onnx infers shapes in C++ that holds some assertions about the graph; a graph that breaks one ends
the process. A forked child finds that out at the cost of a few milliseconds.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from qcompile.errors import ExportError

_SECONDS = 5
"""Processor time for a graph of a few nodes; a hundredth of a second more for each."""

_MEMORY = 8 << 30
"""Bytes that a child may take beyond what its parent holds."""


def survive(path: Path, work: Callable[[], object], nodes: int) -> None:
    """Run ``work`` in a child process; what it raises there does not matter.

    Args:
        path: the file, for the error.
        work: what to try; it must neither start threads nor import anything.
        nodes: size of the graph, which sets how long it may take.

    Raises:
        ExportError: the child was ended by a signal, or did not come to an end.
    """
    if not hasattr(os, "fork"):
        return
    child = os.fork()
    if child == 0:
        _work_and_leave(work, _SECONDS + nodes // 100)
    _, status = os.waitpid(child, 0)
    # The alarm rings for a child that waits, perhaps for a lock that no thread of its own holds:
    # that says nothing about the graph.
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGALRM:
        number = os.WTERMSIG(status)
        what = "takes for ever" if number == signal.SIGXCPU else "ends in a crash"
        raise ExportError(
            f"{path}: the graph is broken: inferring its shapes {what} "
            f"({signal.Signals(number).name}). Check the file with onnx.checker, full_check=True."
        )


def _work_and_leave(work: Callable[[], object], seconds: int) -> None:
    """Do the work with little time and memory, and leave without any of Python's own clearing."""
    try:
        gc.disable()  # collecting a session would wait for threads that a fork leaves behind
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        for kind, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
        with contextlib.suppress(ValueError):  # only the main thread may set what a signal does
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(4 * seconds)
        with contextlib.suppress(OSError, ValueError):
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY, hard))
        work()
    except BaseException:
        pass
    finally:
        os._exit(0)
