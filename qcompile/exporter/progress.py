"""How an export tells those who wait for it how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Called with a line of text at every step, and within a long one with the part of it that is done,
from 0 to 1; with ``None`` where that is not known."""


def unwatched(line: str, part: float | None) -> None:
    """Tell nobody."""


def lines_only(progress: Progress) -> Callable[[str], None]:
    """Return ``progress`` for steps of which no part is known."""
    return lambda line: progress(line, None)
