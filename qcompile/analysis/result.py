"""What an analysis found, as data, as a table and for TensorBoard."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qcompile.analysis.tally import Distribution

__all__ = ["Analysis", "LayerReport", "Maps"]


@dataclass(frozen=True)
class Maps:
    """What a quadratic convolution makes of one example.

    Args:
        layer: its name.
        input: mean over channels [H, W].
        output: mean over channels of |values| [H', W'].
        terms: the same of its first-order and its quadratic terms.
    """

    layer: str
    input: list[list[float]]
    output: list[list[float]]
    terms: dict[str, list[list[float]]]


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Args:
        name: its qualified name.
        kind: its type.
        form: of a quadratic layer.
        output: everything that it returned.
        terms: of a quadratic layer, its ``quadratic`` and its ``first-order`` part.
        quadratic_share: Euclidean norm of the quadratic part over that of the first-order part;
            ``None`` for layers without either.
        weights: its own parameters, by name.
        gradients: their gradients, where a loss was given.
        units: channels, or entries of the last axis.
        dead: units whose output was the same for every input.
        exploding: units that were beyond the limit, or not finite, at least once.
    """

    name: str
    kind: str
    form: str | None
    output: Distribution
    terms: dict[str, Distribution]
    quadratic_share: float | None
    weights: dict[str, Distribution]
    gradients: dict[str, Distribution]
    units: int
    dead: int
    exploding: int

    @property
    def distributions(self) -> dict[str, Distribution]:
        """All of them, by kind and name."""
        return {
            "output": self.output,
            **{f"term {name}": value for name, value in self.terms.items()},
            **{f"weight {name}": value for name, value in self.weights.items()},
            **{f"gradient {name}": value for name, value in self.gradients.items()},
        }


@dataclass(frozen=True)
class Analysis:
    """All layers of a model that returned a floating-point tensor.

    Args:
        model: its type.
        batches: how many it ran on.
        limit: beyond which units count as exploding.
        layers: in the order of the model.
        maps: of the first quadratic convolutions.
    """

    model: str
    batches: int
    limit: float
    layers: list[LayerReport]
    maps: list[Maps] = field(default_factory=list)

    def layer(self, name: str) -> LayerReport:
        """Return the report of one layer.

        Raises:
            KeyError: there is none of that name.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def remarks(self) -> list[str]:
        """What deserves attention, a sentence each."""
        found = []
        for layer in self.layers:
            where = f"{layer.name or '(the model itself)'} ({layer.kind})"
            if layer.output.not_finite:
                found.append(f"{where} returned {layer.output.not_finite:,} values not finite")
            elif layer.exploding:
                found.append(
                    f"{layer.exploding} of {layer.units} units of {where} went beyond "
                    f"{self.limit:g}, up to {layer.output.largest:.3g}"
                )
            if layer.dead:
                found.append(f"{layer.dead} of {layer.units} units of {where} never change")
            if layer.quadratic_share is not None and layer.quadratic_share < 1e-3:
                found.append(
                    f"{where} is nearly first-order: quadratic share {layer.quadratic_share:.2g}"
                )
            for name, gradient in layer.gradients.items():
                if gradient.count and gradient.zeros == 1:
                    found.append(f"{where}: {name} got no gradient other than zero")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; what is infinite is a string."""
        found: dict[str, Any] = _plain({**asdict(self), "remarks": self.remarks})
        return found

    def write_html(self, path: str | Path) -> Path:
        """Write one page with all tables and pictures in it; needs matplotlib.

        Raises:
            ConfigurationError: matplotlib is not installed, or the page cannot be written.
        """
        from qcompile.analysis.page import write_page

        return write_page(self, Path(path))

    def write_tensorboard(self, folder: str | Path, step: int = 0) -> Path:
        """Write histograms and figures for TensorBoard, and return the file.

        Raises:
            ConfigurationError: tensorboard is not installed, or the file cannot be written.
        """
        from qcompile.analysis.board import write_board

        return write_board(self, Path(folder), step)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
