"""A detection set that is drawn when it is asked for: shapes of any turn on textures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompile.data.detection_set import Annotated
from qcompile.errors import ConfigurationError

__all__ = ["Shapes"]

_MOST_OBJECTS, _TRIES = 4, 20
_SMALLEST, _LARGEST = 0.08, 0.25  # radius, as a share of the side
_CONTRAST = 0.25
_POLYGONS = {"square": 4, "triangle": 3}

Plane = NDArray[np.float64]


class Shapes:
    """Images of one to four circles, squares, triangles and crosses, one as the next every time.

    Ground and shapes have colours and stripes at random, and noise lies over all. A shape may cover
    part of another, whose box stays whole.

    Args:
        count: number of images.
        side: of an image, in pixels.
        seed: of them all.

    Raises:
        ConfigurationError: a size is out of range.
    """

    classes: tuple[str, ...] = ("circle", "square", "triangle", "cross")

    def __init__(self, count: int, side: int = 96, seed: int = 0) -> None:
        if count < 1 or side < 32:
            raise ConfigurationError(
                f"Shapes: count must be at least 1 and side at least 32, got {count} and {side}."
            )
        self.count, self.side, self.seed = count, side, seed

    def __len__(self) -> int:
        """Return the number of images."""
        return self.count

    def __getitem__(self, index: int) -> Annotated:
        """Draw one."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        ground = rng.uniform(0.1, 0.9, 3)
        image = _texture(rng, self.side, ground)
        boxes: list[Plane] = []
        labels: list[int] = []
        for _ in range(rng.integers(1, _MOST_OBJECTS + 1)):
            label = int(rng.integers(len(self.classes)))
            mask, box = self._place(rng, self.classes[label], boxes)
            if box is None:
                continue
            image = np.where(mask, _texture(rng, self.side, _other(rng, ground)), image)
            boxes.append(box)
            labels.append(label)
        image += rng.normal(0, 0.03, image.shape)
        return Annotated(
            (image.clip(0, 1) * 255).astype(np.uint8),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
            np.zeros(len(labels), bool),
        )

    def _place(
        self, rng: np.random.Generator, name: str, others: list[Plane]
    ) -> tuple[NDArray[np.bool_], Plane | None]:
        """Return where a shape lies, bool [side, side], and its box if there is room."""
        for _ in range(_TRIES):
            radius = self.side * rng.uniform(_SMALLEST, _LARGEST)
            x, y = rng.uniform(radius, self.side - radius, 2)
            mask = _inside(name, self.side, x, y, radius, rng.uniform(0, 2 * np.pi))
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / self.side
            if all(_covered(box, other) < 0.3 for other in others):
                return mask, box
        return mask, None


def _inside(
    name: str, side: int, x: float, y: float, radius: float, turn: float
) -> NDArray[np.bool_]:
    """Return the pixels within a shape around (x, y), all within the radius."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    across, down = columns - x, rows - y
    u = np.cos(turn) * across + np.sin(turn) * down
    v = np.cos(turn) * down - np.sin(turn) * across
    if name == "circle":
        return np.asarray(np.hypot(u, v) <= radius)
    if name == "cross":
        arm = radius / 3.2
        long, short = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
        return np.asarray((short <= arm) & (long <= (radius**2 - arm**2) ** 0.5))
    count = _POLYGONS[name]
    angles = 2 * np.pi * np.arange(count) / count
    edges = np.cos(angles)[:, None, None] * u + np.sin(angles)[:, None, None] * v
    return np.asarray(edges.max(0) <= radius * np.cos(np.pi / count))


def _texture(rng: np.random.Generator, side: int, colour: Plane) -> Plane:
    """Return stripes around a colour, float64 [3, side, side]."""
    rows, columns = np.mgrid[:side, :side] / side
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(2, 16), rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    stripes = np.sin(2 * np.pi * frequency * along + phase)
    tint = rng.uniform(0, 0.12, 3)
    return np.asarray(colour[:, None, None] + tint[:, None, None] * stripes)


def _other(rng: np.random.Generator, ground: Plane) -> Plane:
    """Return a colour that differs from the ground."""
    while True:
        colour = rng.uniform(0.1, 0.9, 3)
        if np.abs(colour - ground).max() > _CONTRAST:
            return colour


def _covered(one: Plane, other: Plane) -> float:
    """Return the shared area of two boxes as a share of the smaller one."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    areas = [float((box[2:] - box[:2]).prod()) for box in (one, other)]
    return float(sides.clip(min=0).prod()) / min(areas)
