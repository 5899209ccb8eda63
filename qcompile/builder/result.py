"""What a search did, step by step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from torch import nn

__all__ = ["BuildResult", "Importance", "Step"]

Action = Literal["first-order", "replace", "control", "remove", "revert", "tune"]


@dataclass(frozen=True)
class Importance:
    """How little a layer pays.

    Args:
        layer: its name.
        parameters: P_M, its share of the network's parameters.
        flops: P_W, its share of the operations.
        loss: δ_A, by how much the metric falls with the layer's output set to zero.
        index: RI = P_M · P_W / δ_A; infinite where nothing falls. High: take it out.
    """

    layer: str
    parameters: float
    flops: float
    loss: float
    index: float


@dataclass(frozen=True)
class Step:
    """One change of the network.

    Args:
        action: ``replace``, ``remove``, ``revert`` or ``tune``; ``first-order`` (the network as
            given) and ``control`` (the replaced network) are trained for comparison alone.
        layer: which; empty for steps of the whole network.
        parameters: of the network after it.
        flops: of one example after it.
        metric: on the validation data after training.
        kept: whether the network stayed so.
        note: why not, where it did not.
    """

    action: Action
    layer: str
    parameters: int
    flops: int
    metric: float
    kept: bool
    note: str = ""


@dataclass
class BuildResult:
    """A network and how it came about.

    Args:
        model: the network, in evaluation mode.
        steps: in order; the last kept one describes ``model``.
        importance: of every quadratic layer after training, the first to go first.
    """

    model: nn.Module
    steps: list[Step]
    importance: list[Importance] = field(default_factory=list)

    @property
    def final(self) -> Step:
        """The step that describes ``model``."""
        return next(step for step in reversed(self.steps) if step.kept)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; an infinite index is a string."""
        return {
            "steps": [asdict(step) for step in self.steps],
            "importance": [
                {k: str(v) if v == math.inf else v for k, v in asdict(each).items()}
                for each in self.importance
            ],
        }

    def table(self) -> Table:
        """Lay out the search for a rich console."""
        table = Table(title="search", header_style="bold")
        for heading in ("step", "layer", "RI"):
            table.add_column(heading)
        for heading in ("parameters", "FLOPs", "metric"):
            table.add_column(heading, justify="right")
        table.add_column("kept")
        indices = {each.layer: each.index for each in self.importance}
        for step in self.steps:
            index = indices.get(step.layer)
            table.add_row(
                step.action,
                step.layer,
                "" if index is None else f"{index:.3g}",
                f"{step.parameters:,}",
                f"{step.flops:,}",
                f"{step.metric:.4f}",
                "yes" if step.kept else step.note,
            )
        return table

    def __str__(self) -> str:
        """Lay out as plain text."""
        console = Console(width=120)
        with console.capture() as captured:
            console.print(self.table(), markup=False)
        return captured.get()

    def draw(self, path: str | Path) -> Path:
        """Draw the metric against parameters and FLOPs to a PNG file; needs matplotlib.

        Raises:
            ConfigurationError: matplotlib is not installed, or the file cannot be written.
        """
        from qcompile.analysis.pictures import new_figure, save_figure

        drawn = new_figure(9, 4)
        for place, what in enumerate(("parameters", "flops")):
            axes = drawn.add_subplot(1, 2, place + 1)
            for label, style in _STYLES.items():
                steps = [step for step in self.steps if _label(step) == label]
                points = [getattr(s, what) for s in steps], [s.metric for s in steps]
                axes.plot(*points, style, label=label)
            axes.set(xlabel="FLOPs" if what == "flops" else what, ylabel="metric")
            axes.locator_params(axis="x", nbins=4)
        axes.legend()
        return save_figure(drawn, path)


_STYLES = {"first-order": "s", "control": "d", "not kept": "x", "kept": "o-"}


def _label(step: Step) -> str:
    """Return what a step is in the picture."""
    if step.action in _STYLES:
        return step.action
    return "kept" if step.kept else "not kept"
