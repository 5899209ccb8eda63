"""What a training step takes: the result that people and programs read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qcompile.memory.ledger import CATEGORIES
from qcompile.memory.sizes import format_bytes

__all__ = ["LayerMemory", "Measured", "MemoryProfile", "Peak", "Timeline"]


@dataclass(frozen=True)
class Peak:
    """The moment at which a step takes most.

    Args:
        total: bytes.
        breakdown: bytes by what they are for; they add up to ``total``.
        phase: forward, loss, backward or optimizer.
        layer: name of the module at work, empty for the model itself.
        operation: the operator at work.
    """

    total: int
    breakdown: dict[str, int]
    phase: str
    layer: str
    operation: str


@dataclass(frozen=True)
class LayerMemory:
    """One module, by itself: what is inside of its children is theirs.

    Args:
        name: qualified name, empty for the model itself.
        kind: its type.
        parameters: count.
        parameter_bytes: their bytes.
        output_shape: of the first tensor that it returned, or None.
        saved_bytes: what it is the first to save for the backward pass.
        share: of all that is saved, 0 to 1.
    """

    name: str
    kind: str
    parameters: int
    parameter_bytes: int
    output_shape: tuple[int, ...] | None
    saved_bytes: int
    share: float


@dataclass(frozen=True)
class Timeline:
    """Live bytes over one step, one entry an event.

    Args:
        phases: phase of each event.
        layers: module at work.
        live: bytes by category, in the order of :data:`qcompile.memory.ledger.CATEGORIES`.
    """

    phases: list[str]
    layers: list[str]
    live: list[tuple[int, ...]]

    @property
    def totals(self) -> list[int]:
        """All live bytes at each event."""
        return [sum(live) for live in self.live]


@dataclass(frozen=True)
class Measured:
    """What a step took when it ran.

    Args:
        peak: bytes that torch's allocator had handed out at the most.
        phase: of the peak.
        before: bytes that it had handed out when the step began: parameters, buffers, inputs,
            the optimiser's state and the gradients of the step before.
        resident: bytes by which the process itself grew at the most, or None where the system
            does not tell. It holds what other libraries and C++ take, and free memory that is
            kept, so it is more than ``peak``.
        phases: phase of each event.
        totals: bytes after each event.
    """

    peak: int
    phase: str
    before: int
    resident: int | None
    phases: list[str] = field(repr=False)
    totals: list[int] = field(repr=False)


@dataclass(frozen=True)
class MemoryProfile:
    """The memory of one training step of a model.

    Args:
        model: name of its class.
        device: type of the device.
        step: how it is trained.
        predicted: the predicted peak, or None.
        layers: modules in the order of the model, those without parameters that save nothing
            left out.
        saved: bytes saved for the backward pass, all modules together.
        timeline: the predicted step.
        measured: what running it took, or None.
        notes: what else is worth knowing.
    """

    model: str
    device: str
    step: dict[str, Any]
    predicted: Peak | None
    layers: list[LayerMemory]
    saved: int
    timeline: Timeline | None = field(repr=False)
    measured: Measured | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Predicted bytes at the peak, or the measured ones where nothing was predicted."""
        if self.predicted is not None:
            return self.predicted.total
        assert self.measured is not None  # one of them is always there
        return self.measured.peak

    @property
    def error(self) -> float | None:
        """How far the prediction is from the measurement: 0.1 is 10 % too much."""
        if self.predicted is None or self.measured is None:
            return None
        return self.predicted.total / self.measured.peak - 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; of the timelines only the lengths."""
        found = asdict(self)
        timeline = found.pop("timeline")
        found["events"] = None if timeline is None else len(timeline["live"])
        if found["measured"] is not None:
            for name in ("phases", "totals"):
                del found["measured"][name]
        found["error"] = self.error
        return found

    def __str__(self) -> str:
        """Lay out as plain text; the command line draws richer tables."""
        lines = [f"{self.model}, one training step on {self.device}"]
        if self.predicted is not None:
            at = self.predicted
            where = f"{at.phase} of {at.layer or 'the model'}, {at.operation}"
            lines.append(f"predicted peak {format_bytes(at.total)}, in {where}")
            lines += [f"  {name}: {format_bytes(at.breakdown[name])}" for name in CATEGORIES]
        if self.measured is not None:
            lines.append(f"measured peak {format_bytes(self.measured.peak)}")
        width = max((len(layer.name) for layer in self.layers), default=0)
        for layer in self.layers:
            lines.append(
                f"  {layer.name:<{width}}  {layer.kind}: saves {format_bytes(layer.saved_bytes)}"
            )
        return "\n".join([*lines, *self.notes])
