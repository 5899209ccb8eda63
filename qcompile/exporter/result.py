"""What an export hands back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qcompile.calibration.choice import Choice
from qcompile.exporter.verify import Difference
from qcompile.passes.onnx.replace import Head
from qcompile.report import Report


@dataclass
class ExportResult:
    """An exported model and its figures.

    Args:
        path: the ONNX file.
        data_path: the file of its weights, where they are apart.
        report: what the passes did.
        heads: the output layers that were replaced.
        opset: version of the standard operators.
        ir_version: version of the file format.
        top_k: how many scores are handed out, ``None`` for all.
        size: bytes of source and result, data included; of a torch module, the source is the same
            graph in standard operators.
        differences: result against source, output by output, with the plugin and without.
        latency: median milliseconds before and after, of the ``model`` and of the ``head`` alone.
        choices: what calibration chose and measured, by name of the layer.
    """

    path: Path
    data_path: Path | None
    report: Report
    heads: list[Head]
    opset: int
    ir_version: int
    top_k: int | None
    size: tuple[int, int]
    differences: list[Difference] = field(default_factory=list)
    latency: dict[str, tuple[float, float]] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)

    @property
    def max_difference(self) -> float | None:
        """The largest absolute difference of any output; ``None`` where nothing was verified."""
        return max((difference.largest for difference in self.differences), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "path": str(self.path),
            "data_path": None if self.data_path is None else str(self.data_path),
            "opset": self.opset,
            "ir_version": self.ir_version,
            "top_k": self.top_k,
            "heads": [asdict(head) for head in self.heads],
            "bytes": {"before": self.size[0], "after": self.size[1]},
            "verified": sorted({difference.variant for difference in self.differences}),
            "max_difference": self.max_difference,
            "differences": [asdict(difference) for difference in self.differences],
            "latency_ms": {
                name: {"before": before, "after": after}
                for name, (before, after) in self.latency.items()
            },
            "calibration": {name: choice.to_dict() for name, choice in self.choices.items()},
            "report": self.report.to_dict(),
        }

    def __str__(self) -> str:
        """Lay out as plain text."""
        lines = [f"{self.path}: {self.report.summary()}"]
        if self.data_path is not None:
            lines.append(f"weights: {self.data_path}")
        lines.append(f"size: {self.size[0]:,} → {self.size[1]:,} bytes")
        for name, (before, after) in self.latency.items():
            lines.append(f"latency of the {name}: {before:.3f} → {after:.3f} ms")
        lines += [f"{name}: {choice}" for name, choice in self.choices.items()]
        if self.differences:
            lines.append(f"largest difference: {self.max_difference:.3g}")
        return "\n".join([*lines, *self.report.notes])
