"""Ctrl-C and SIGTERM ask a run to save and end; asked again, it ends at once.

Under torchrun, which passes a signal on to processes that the terminal has sent it already, they
only ask; what does not end is ended by torchrun.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupt"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While entered, turns the first signal into a request and the second into KeyboardInterrupt.

    Outside the main thread, where Python allows no handlers, it never asks.

    Args:
        patient: take further signals for the first one repeated.

    Attributes:
        signal: number of the signal that came, or None.
    """

    def __init__(self, patient: bool = False) -> None:
        self._patient = patient
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and not self._patient:
            raise KeyboardInterrupt
        self.signal = self.signal or number
