"""Draws the memory of a training step over its course."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.analysis.pictures import new_figure, save_figure
from qcompile.errors import ConfigurationError
from qcompile.memory.ledger import CATEGORIES
from qcompile.memory.sizes import format_bytes

if TYPE_CHECKING:
    from qcompile.memory.profile import Measured, MemoryProfile, Timeline

__all__ = ["check_picture", "draw"]

_PHASES = ("forward", "loss", "backward", "optimizer")
_MOST_NAMES = 44
_COLOURS = ("#4c566a", "#8f9aae", "#b8c0cc", "#3b6ea5", "#d08c42", "#5a9367", "#c05a6b")
_UNIT = 1 << 20


def check_picture(path: str | Path) -> Path:
    """Return where a picture can be written.

    Raises:
        ConfigurationError: matplotlib is missing, or the ending is not .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ConfigurationError(f"timeline {path}: the picture is a PNG; end its name in .png.")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"timeline {path}: there is no folder {path.absolute().parent}.")
    if find_spec("matplotlib") is None:
        raise ConfigurationError(
            "timeline: the picture is drawn by matplotlib, which is not installed: "
            "pip install matplotlib."
        )
    return path


def draw(profile: MemoryProfile, path: str | Path) -> Path:
    """Write a picture of the predicted step, whole or not at all.

    Areas are live bytes by what they are for, from event to event; the peak is marked; below stand
    the modules at work. A measured step is a line over it, stretched phase by phase.

    Args:
        profile: with a prediction.
        path: the PNG file.

    Raises:
        ConfigurationError: there is no prediction, matplotlib is missing, or the ending is not
            .png.
    """
    path = check_picture(path)
    timeline = profile.timeline
    if timeline is None or profile.predicted is None:
        raise ConfigurationError("timeline: the picture shows the prediction, and there is none.")
    figure = new_figure(13, 6.5)
    axes = figure.add_subplot()
    _areas(axes, timeline)
    if profile.measured is not None and profile.measured.totals:
        _line(axes, timeline, profile.measured)
    _peak(axes, profile, timeline)
    _phases(axes, timeline)
    _names(axes, timeline)
    axes.set_title(_title(profile), loc="left")
    axes.set_ylabel("MiB")
    axes.set_xlim(0, len(timeline.live) - 1)
    axes.set_ylim(0, max(_most(profile), 1) / _UNIT * 1.12)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True, frameon=False)
    return save_figure(figure, path)


def _title(profile: MemoryProfile) -> str:
    assert profile.predicted is not None
    how = f"{profile.step['optimizer']}, {profile.device}"
    text = f"{profile.model}, one training step ({how}): predicted peak "
    text += format_bytes(profile.predicted.total)
    if profile.measured is not None:
        text += f", measured {format_bytes(profile.measured.peak)}"
    return text


def _most(profile: MemoryProfile) -> int:
    measured = 0 if profile.measured is None else profile.measured.peak
    return max(measured, profile.peak)


def _areas(axes: Any, timeline: Timeline) -> None:
    rows = [[live[i] / _UNIT for live in timeline.live] for i in range(len(CATEGORIES))]
    axes.stackplot(range(len(timeline.live)), rows, labels=CATEGORIES, colors=_COLOURS, linewidth=0)


def _line(axes: Any, timeline: Timeline, measured: Measured) -> None:
    """Draw the measured bytes, each phase as wide as the predicted one."""
    predicted, real = _spans(timeline.phases), _spans(measured.phases)
    x: list[float] = []
    y: list[float] = []
    for phase in _PHASES:
        if phase not in predicted or phase not in real:
            continue
        (left, right), (first, last) = predicted[phase], real[phase]
        count = last - first
        x += [left + (right - left) * (i + 1) / count for i in range(count)]
        y += [total / _UNIT for total in measured.totals[first:last]]
    axes.plot(x, y, color="black", linewidth=0.9, label="measured")


def _spans(phases: list[str]) -> dict[str, tuple[int, int]]:
    """Return the first event of each phase and the one after its last."""
    spans: dict[str, tuple[int, int]] = {}
    for i, phase in enumerate(phases):
        spans[phase] = spans.get(phase, (i, i))[0], i + 1
    return spans


def _peak(axes: Any, profile: MemoryProfile, timeline: Timeline) -> None:
    peak = profile.predicted
    assert peak is not None
    at = timeline.totals.index(peak.total)
    left = at > len(timeline.live) / 2
    axes.plot([at], [peak.total / _UNIT], "v", color="black", markersize=8)
    axes.annotate(
        f"{format_bytes(peak.total)} in {peak.phase} of {peak.layer or 'the model'}, "
        f"{peak.operation}",
        (at, peak.total / _UNIT),
        xytext=(-8 if left else 8, 8),
        textcoords="offset points",
        ha="right" if left else "left",
    )


def _phases(axes: Any, timeline: Timeline) -> None:
    for phase, (first, last) in _spans(timeline.phases).items():
        axes.axvline(first, color="black", linewidth=0.6, linestyle=":")
        if last - first > len(timeline.live) / 30:
            axes.text(
                (first + last) / 2,
                0.985,
                phase,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top",
                color="#333333",
            )


def _names(axes: Any, timeline: Timeline) -> None:
    """Name the modules at work, as exactly as there is room for."""
    deepest = max((name.count(".") + 1 for name in timeline.layers), default=1)
    ticks: list[tuple[float, str]] = []
    for depth in range(deepest, 0, -1):
        ticks = _runs(timeline, depth)
        if len(ticks) <= _MOST_NAMES:
            break
    else:
        ticks = ticks[:: -(-len(ticks) // _MOST_NAMES)]
    ticks = _apart(ticks, len(timeline.live) / _MOST_NAMES / 2)
    axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks], rotation=90)
    axes.tick_params(axis="x", labelsize=7)


def _apart(ticks: list[tuple[float, str]], least: float) -> list[tuple[float, str]]:
    """Leave out names that would be printed over the one before."""
    kept: list[tuple[float, str]] = []
    for place, name in ticks:
        if not kept or place - kept[-1][0] >= least:
            kept.append((place, name))
    return kept


def _runs(timeline: Timeline, depth: int) -> list[tuple[float, str]]:
    """Return middle and name of each stretch in which one module works."""
    names = (".".join(name.split(".")[:depth]) for name in timeline.layers)
    places = []
    for (name, phase), run in groupby(
        enumerate(zip(names, timeline.phases, strict=True)), key=lambda entry: entry[1]
    ):
        indices = [i for i, _ in run]
        if name and phase != "optimizer":
            places.append(((indices[0] + indices[-1]) / 2, name))
    return places
