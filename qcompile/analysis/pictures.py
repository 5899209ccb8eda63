"""Pictures of trainings and of what networks make of images, as PNG files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from qcompile.errors import ConfigurationError

__all__ = ["Mark", "draw_curves", "draw_images", "new_figure", "save_figure"]


class Mark(NamedTuple):
    """A box on an image.

    Args:
        box: left, top, right and bottom as shares of the image's sides.
        text: above it.
        colour: of both.
    """

    box: Sequence[float]
    text: str = ""
    colour: str = "lime"


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure, sizes in inches.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "pictures are drawn by matplotlib: python -m pip install 'torch-qcompile[analysis]'."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG file, whole or not at all.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(suffix=".png", dir=path.absolute().parent)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        figure.savefig(temporary, format="png", dpi=120)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def draw_curves(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    measures: Sequence[str],
    path: str | os.PathLike[str],
) -> Path:
    """Draw measures against epochs.

    Args:
        curves: of each run by name, the figures of each epoch.
        measures: names of those figures, a picture for each.
        path: the PNG file.

    Raises:
        ConfigurationError: matplotlib is not installed, or the file cannot be written.
    """
    drawn = new_figure(4.5 * len(measures), 4)
    for place, measure in enumerate(measures):
        axes = drawn.add_subplot(1, len(measures), place + 1)
        for name, curve in curves.items():
            values = [epoch[measure] for epoch in curve]
            axes.plot(range(1, len(values) + 1), values, "o-", label=name)
        axes.set(xlabel="epoch", ylabel=measure)
        axes.legend()
    return save_figure(drawn, path)


def draw_images(
    images: Tensor,
    path: str | os.PathLike[str],
    *,
    titles: Sequence[str] = (),
    colours: Sequence[str] = (),
    marks: Sequence[Sequence[Mark]] = (),
    columns: int = 10,
    side: float = 1.0,
) -> Path:
    """Draw images in rows.

    Args:
        images: floating [N, C, H, W] in −1, black, to 1; of one channel or three.
        path: the PNG file.
        titles: one above each image.
        colours: of the titles, black by default.
        marks: boxes on each image.
        columns: images in a row.
        side: of an image in inches.

    Raises:
        ConfigurationError: matplotlib is not installed, or the file cannot be written.
    """
    shown = ((images.detach().float().cpu() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    count, height, width, channels = shown.shape
    rows = -(-count // columns)
    gap = 1 + width // 16
    tall, wide = height + gap + (height // 4 if titles else 0), width + gap
    canvas = np.ones((rows * tall, columns * wide, channels), np.float32)
    drawn = new_figure(columns * side, rows * side * tall / wide)
    axes = drawn.add_subplot()
    axes.axis("off")
    for place, image in enumerate(shown):
        row, column = divmod(place, columns)
        top, left = (row + 1) * tall - height, column * wide
        canvas[top : top + height, left : left + width] = image
        if titles:
            colour = colours[place] if colours else "black"
            middle = left + width / 2
            axes.text(middle, top - 1, titles[place], fontsize=8, color=colour, ha="center")
        for each in marks[place : place + 1]:
            _mark(axes, each, (left - 0.5, top - 0.5), (width, height))
    axes.imshow(canvas[..., 0] if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1)
    return save_figure(drawn, path)


def _mark(
    axes: Any, marks: Sequence[Mark], corner: tuple[float, float], sides: tuple[int, int]
) -> None:
    from matplotlib.patches import Rectangle

    for box, text, colour in marks:
        left, top = (corner[axis] + box[axis] * sides[axis] for axis in range(2))
        wide, high = ((box[2 + axis] - box[axis]) * sides[axis] for axis in range(2))
        axes.add_patch(
            Rectangle((left, top), wide, high, fill=False, edgecolor=colour, linewidth=1.5)
        )
        if text:
            axes.text(left, top - 1, text, fontsize=7, color=colour)
