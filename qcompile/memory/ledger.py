"""Blocks of memory that come and go during training steps, and what is alive when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = [
    "ACTIVATION",
    "BUFFER",
    "CATEGORIES",
    "GRADIENT",
    "INPUT",
    "OPTIMIZER",
    "PARAMETER",
    "TEMPORARY",
    "Block",
    "Ledger",
    "Moment",
]

PARAMETER, BUFFER, INPUT = "parameters", "buffers", "inputs"
GRADIENT, OPTIMIZER = "gradients", "optimizer state"
ACTIVATION, TEMPORARY = "activations", "temporaries"
CATEGORIES = (PARAMETER, BUFFER, INPUT, OPTIMIZER, GRADIENT, ACTIVATION, TEMPORARY)
"""What memory is for, from what stays longest to what goes first."""


@dataclass(eq=False)
class Block:
    """One storage.

    Args:
        size: bytes.
        category: one of :data:`CATEGORIES`.
        layer: name of the innermost module that was running when it was made.
        operation: name of the operator that made it.
        saver: name of the module that saved it for the backward pass first, or None.
    """

    size: int
    category: str = TEMPORARY
    layer: str = ""
    operation: str = ""
    saver: str | None = None

    @property
    def stays(self) -> bool:
        """Whether it is there between steps anyway."""
        return self.category in (PARAMETER, BUFFER, INPUT, OPTIMIZER)


@dataclass(frozen=True)
class Moment:
    """Live bytes right after one event, or at the height of one operator.

    Args:
        phase: forward, loss, backward or optimizer.
        layer: name of the module at work.
        operation: name of the operator at work; empty where memory was only freed.
        live: bytes by category, in the order of :data:`CATEGORIES`.
        event: number of the event in its ledger.
    """

    phase: str
    layer: str
    operation: str
    live: tuple[int, ...]
    event: int

    @property
    def total(self) -> int:
        """All live bytes."""
        return sum(self.live)


@dataclass(frozen=True)
class _Event:
    phase: str
    layer: str
    operation: str
    made: tuple[Block, ...] = ()
    freed: Block | None = None
    workspace: int = 0


@dataclass
class Ledger:
    """What happened, in order; categories may be corrected until it is read."""

    _events: list[_Event] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._events)

    def make(
        self, phase: str, layer: str, operation: str, blocks: list[Block], height: int = 0
    ) -> None:
        """Enter the blocks that an operator made.

        Args:
            phase: of the step.
            layer: at work.
            operation: the operator.
            blocks: its results.
            height: bytes that it takes at its height, results included.
        """
        workspace = max(0, height - sum(block.size for block in blocks))
        if blocks or workspace:
            self._events.append(_Event(phase, layer, operation, tuple(blocks), workspace=workspace))

    def free(self, phase: str, layer: str, block: Block) -> None:
        """Enter that a block is gone."""
        self._events.append(_Event(phase, layer, "", freed=block))

    def blocks(self, start: int, end: int) -> Iterator[Block]:
        """Yield the blocks that the events from ``start`` to before ``end`` made."""
        for event in self._events[start:end]:
            yield from event.made

    def alive(self, event: int) -> set[Block]:
        """Return the blocks that are there right after an event."""
        blocks: set[Block] = set()
        for each in self._events[: event + 1]:
            blocks.update(each.made)
            if each.freed is not None:
                blocks.discard(each.freed)
        return blocks

    def moments(self, start: int, end: int) -> Iterator[Moment]:
        """Yield what was alive at the events from ``start`` to before ``end``.

        An operator gives one moment at its height, with its results and its workspace, and one
        afterwards.
        """
        index = {name: i for i, name in enumerate(CATEGORIES)}
        live = [0] * len(CATEGORIES)
        for number, event in enumerate(self._events[:end]):
            for block in event.made:
                live[index[block.category]] += block.size
            if event.freed is not None:
                live[index[event.freed.category]] -= event.freed.size
            if number < start:
                continue
            if event.workspace:
                height = list(live)
                height[index[TEMPORARY]] += event.workspace
                yield Moment(event.phase, event.layer, event.operation, tuple(height), number)
            yield Moment(event.phase, event.layer, event.operation, tuple(live), number)
