"""What the benchmark compares: an engine is built once into a folder, opened and asked.

Every engine answers the same question, the k best classes of hidden vectors [B, d], by one call of
its own Python interface: for onnxruntime a whole ``Run``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.heads import Head

__all__ = ["Engine", "K", "Point", "Search"]

K = 10
Point = dict[str, Any]
Search = Callable[[np.ndarray], np.ndarray]


class Engine(ABC):
    """One way to answer.

    Attributes:
        package: the module that it needs.
        threads: with how many it is measured.
        approximate: whether recall is a matter of settings.
        heads: the only heads that it is meant for; ``None`` for all.
        layout: of the index on disk; another one is built anew.
    """

    package = "onnxruntime"
    threads: tuple[int, ...] = (1,)
    approximate = False
    heads: tuple[str, ...] | None = None
    layout = ""

    @abstractmethod
    def build(self, head: Head, place: Path) -> Callable[[], None]:
        """Make the index from the head; return what writes it into the folder."""

    @abstractmethod
    def open(self, head: Head, place: Path, threads: int) -> None:
        """Read what was built."""

    @abstractmethod
    def search(self, point: Point) -> Search:
        """Return the call to measure: float32 [B, d] → ids [B, K]."""

    def points(self, head: Head) -> list[Point]:
        """Return the settings to try."""
        return [{}]
