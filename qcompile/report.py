"""What a pass did, module by module or node by node."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["rewritten", "skipped"]


@dataclass(frozen=True)
class Entry:
    """One module or node that a pass looked at.

    Args:
        pass_name: the pass that decided.
        name: qualified name of the module, or name of the ONNX node.
        kind: its type before.
        status: rewritten or skipped.
        reason: what it became, or why it was left alone.
        parameters: count before and after.
        flops: floating-point operations of one call on the example inputs, before and after;
            ``None`` where no example inputs were given.
    """

    pass_name: str
    name: str
    kind: str
    status: Status
    reason: str
    parameters: tuple[int, int] = (0, 0)
    flops: tuple[int | None, int | None] = (None, None)


@dataclass
class Report:
    """Everything that passes did to one model, in order.

    Args:
        entries: one for each module or node that was looked at.
        notes: what else is worth knowing.
        problems: what was asked for and not done, such as a selector that matches nothing.
    """

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def rewritten(self) -> list[Entry]:
        """Entries that changed the model."""
        return [entry for entry in self.entries if entry.status == "rewritten"]

    @property
    def skipped(self) -> list[Entry]:
        """Entries that were left alone, with the reason."""
        return [entry for entry in self.entries if entry.status == "skipped"]

    @property
    def modified(self) -> bool:
        """Whether the model changed at all."""
        return bool(self.rewritten)

    def extend(self, other: Report) -> None:
        """Append everything that ``other`` holds."""
        self.entries.extend(other.entries)
        self.notes.extend(other.notes)
        self.problems.extend(other.problems)

    def summary(self) -> str:
        """Say in one line what happened, and why nothing did if nothing did."""
        if self.modified:
            kinds = Counter(entry.reason for entry in self.rewritten)
            what = ", ".join(f"{count} × {reason}" for reason, count in kinds.most_common())
            return f"{len(self.rewritten)} rewritten ({what}), {len(self.skipped)} skipped"
        reasons = Counter(entry.reason for entry in self.skipped)
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        return f"0 rewritten: {why or 'nothing of a matching type was found'}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "modified": self.modified,
            "summary": self.summary(),
            "entries": [asdict(entry) for entry in self.entries],
            "notes": list(self.notes),
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        """Lay out as a table of plain text; the command line draws a richer one."""
        lines = [self.summary(), *self.problems, *self.notes]
        width = max((len(entry.name) for entry in self.entries), default=0)
        for entry in self.entries:
            before, after = entry.parameters
            size = f"{before:,} → {after:,} parameters" if entry.status == "rewritten" else ""
            lines.append(
                f"  {entry.name:<{width}}  {entry.status}: {entry.reason}  {size}".rstrip()
            )
        return "\n".join(lines)
