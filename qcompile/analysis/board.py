"""An analysis as histograms and figures that TensorBoard shows."""

from __future__ import annotations

import math
from pathlib import Path

from qcompile.analysis.result import Analysis
from qcompile.analysis.tally import EDGES, Distribution
from qcompile.errors import ConfigurationError
from qcompile.training.event_file import EventFile

__all__ = ["write_board"]


def write_board(analysis: Analysis, folder: Path, step: int) -> Path:
    """Write one event file; see :meth:`Analysis.write_tensorboard`."""
    file = EventFile(folder)
    figures: dict[str, float] = {}
    histograms = {}
    for layer in analysis.layers:
        name = layer.name or "model"
        figures[f"{name}/dead units"] = layer.dead
        figures[f"{name}/exploding units"] = layer.exploding
        if layer.quadratic_share is not None and math.isfinite(layer.quadratic_share):
            figures[f"{name}/quadratic share"] = layer.quadratic_share
        for what, found in layer.distributions.items():
            if found.count:
                histograms[f"{name}/{what}"] = histogram(found)
    try:
        file.report(figures, step)
        file.report_histograms(histograms, step)
    except OSError as error:
        raise ConfigurationError(f"{file.path}: cannot be written: {error.strerror}.") from error
    return file.path


def histogram(found: Distribution) -> dict[str, object]:
    """Return the fields of TensorBoard's histogram; bins are named by their upper ends."""
    ends = [*EDGES.tolist(), max(found.greatest, float(EDGES[-1]))]
    first = next(i for i, count in enumerate(found.bins) if count)
    last = next(i for i in reversed(range(len(found.bins))) if found.bins[i])
    return {
        "min": found.least,
        "max": found.greatest,
        "num": found.count,
        "sum": found.mean * found.count,
        "sum_squares": (found.std**2 + found.mean**2) * found.count,
        "bucket_limit": ends[first : last + 1],
        "bucket": [float(count) for count in found.bins[first : last + 1]],
    }
