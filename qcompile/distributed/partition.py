"""Which rank owns which classes of a sharded output layer."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.errors import ConfigurationError

__all__ = ["Partition"]


@dataclass(frozen=True)
class Partition:
    """Contiguous, balanced ranges: their sizes differ by at most one.

    Args:
        total: what is divided: classes, or the examples of a batch.
        parts: ranks.
    """

    total: int
    parts: int

    def range(self, part: int) -> tuple[int, int]:
        """Return ``[low, high)`` of one part."""
        return part * self.total // self.parts, (part + 1) * self.total // self.parts

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """All ranges, by part."""
        return [self.range(part) for part in range(self.parts)]

    @property
    def sizes(self) -> list[int]:
        """What each part holds."""
        return [high - low for low, high in self.ranges]

    @classmethod
    def of_classes(cls, classes: int, ranks: int) -> Partition:
        """Divide classes so that each rank owns at least one.

        Raises:
            ConfigurationError: there are more ranks than classes.
        """
        if ranks > classes:
            raise ConfigurationError(
                f"{ranks} ranks cannot share {classes} classes: each needs at least one; "
                "start fewer processes (torchrun --nproc-per-node)."
            )
        return cls(classes, ranks)
