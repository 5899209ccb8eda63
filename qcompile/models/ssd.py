"""SSD, a detector of objects at several scales in one pass, on a VGG trunk of either order.

Source: Liu et al., "SSD: single shot multibox detector", ECCV 2016: feature maps of falling size,
on each a convolution that says, for some prior boxes at each place, which class is there and how
the box differs. The trunk has batch norms, so that its first map needs no L2 norm of its own.
QuadraLib (Xu et al., MLSys 2022) replaces the trunk's convolutions by quadratic neurons; here the
layers behind the trunk are quadratic as well, the heads first-order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qcompile.errors import ConfigurationError
from qcompile.models.boxes import decode
from qcompile.models.parts import Kind, at_least_one, unit, width
from qcompile.models.vgg import POOL

__all__ = ["SSD", "Boxes", "Raw", "qssd7", "ssd7", "ssd13"]

SEVEN = (64, 64, POOL, 128, 128, POOL, 256, POOL, 512, POOL, 512)
THIRTEEN = (64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512)
_MAPS, _EXTRA = 2, 256


class Raw(NamedTuple):
    """What a detector says of each prior box.

    Args:
        offsets: [B, P, 4], see :func:`qcompile.models.boxes.encode`.
        scores: [B, P, 1 + classes], logits; the first is that of no object.
    """

    offsets: Tensor
    scores: Tensor


class SSD(nn.Module):
    """Convolutions of 3×3 and poolings as in a VGG, further ones that halve, and a head a map.

    The last two widths between poolings make maps; behind them the size is halved until it is 1.
    Scales of prior boxes rise evenly from map to map; each place has a square of its map's scale,
    one of the geometric mean with the next, and two rectangles for each of ``ratios``.

    Args:
        widths: channels of each convolution, :data:`qcompile.models.vgg.POOL` for a pooling.
        classes: number of them, no object not counted.
        side: pixels of an image's side.
        channels: of the images.
        scale: factor of every width.
        scales: of the smallest and largest prior box, as shares of the image's side.
        ratios: of width and height of rectangles.
        kind: the arguments of :class:`qcompile.models.parts.Kind`.

    Shape:
        [batch, channels, side, side] → :class:`Raw`.

    Attributes:
        priors: float32 [P, 4], prior boxes as shares of the sides: centre, width and height.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    priors: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        *,
        side: int = 300,
        channels: int = 3,
        scale: float = 1.0,
        scales: tuple[float, float] = (0.1, 0.9),
        ratios: Sequence[float] = (2.0,),
        **kind: Any,
    ) -> None:
        super().__init__()
        at_least_one("SSD", classes=classes, channels=channels)
        _check(widths, side, scales, ratios)
        self.classes, self.side = classes, side
        of = Kind(**kind)
        stages, sizes, outputs = _trunk(widths, channels, side, scale, of)
        while sizes[-1] > 1:
            stages.append(_halving(outputs[-1], width(_EXTRA, scale), of))
            outputs.append(width(_EXTRA, scale))
            sizes.append((sizes[-1] + 1) // 2)
        self.stages = nn.ModuleList(stages)
        places = 2 + 2 * len(ratios)
        self.boxes = nn.ModuleList(nn.Conv2d(n, 4 * places, 3, padding=1) for n in outputs)
        self.scores = nn.ModuleList(
            nn.Conv2d(n, (1 + classes) * places, 3, padding=1) for n in outputs
        )
        self.register_buffer("priors", _priors(sizes, scales, ratios), persistent=False)

    def forward(self, images: Tensor) -> Raw:
        """Map images to what is said of each prior box."""
        offsets, scores = [], []
        for stage, box, score in zip(self.stages, self.boxes, self.scores, strict=True):
            images = stage(images)
            offsets.append(box(images).permute(0, 2, 3, 1).flatten(1))
            scores.append(score(images).permute(0, 2, 3, 1).flatten(1))
        return Raw(
            torch.cat(offsets, 1).unflatten(1, (-1, 4)),
            torch.cat(scores, 1).unflatten(1, (-1, 1 + self.classes)),
        )


class Boxes(nn.Module):
    """A detector that answers with boxes and probabilities, for serving.

    Args:
        detector: whose parameters are shared.

    Shape:
        [batch, channels, side, side] → boxes [B, P, 4] as left, top, right and bottom in shares of
        the sides, and probabilities [B, P, classes].
    """

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to boxes and probabilities."""
        offsets, scores = self.detector(images)
        return decode(offsets, self.detector.priors), scores.softmax(2)[..., 1:]


def ssd13(classes: int, **options: Any) -> SSD:
    """Build the detector on VGG-13's ten convolutions."""
    return SSD(THIRTEEN, classes, **options)


def ssd7(classes: int, **options: Any) -> SSD:
    """Build QSSD-7's first-order counterpart."""
    return SSD(SEVEN, classes, **options)


def qssd7(classes: int, *, form: str = "Quadra", **options: Any) -> SSD:
    """Build the detector on QVGG-7's quadratic blocks."""
    return SSD(SEVEN, classes, form=form, **options)


def _check(
    widths: Sequence[int], side: int, scales: tuple[float, float], ratios: Sequence[float]
) -> None:
    poolings = list(widths).count(POOL)
    if poolings < 1 or not all(any(part) for part in _between(widths)):
        raise ConfigurationError(
            f"SSD: widths {tuple(widths)} need a pooling, and widths before and behind each."
        )
    if side < 2**poolings:
        raise ConfigurationError(
            f"SSD: side must be at least {2**poolings} for {poolings} poolings, got {side}."
        )
    if not 0 < scales[0] < scales[1] <= 1:
        raise ConfigurationError(f"SSD: scales must rise within 0 to 1, got {scales}.")
    if not all(ratio > 0 for ratio in ratios):
        raise ConfigurationError(f"SSD: ratios must be positive, got {tuple(ratios)}.")


def _between(widths: Sequence[int]) -> list[list[int]]:
    """Return the widths between poolings."""
    parts: list[list[int]] = [[]]
    for each in widths:
        if each == POOL:
            parts.append([])
        else:
            parts[-1].append(each)
    return parts


def _trunk(
    widths: Sequence[int], channels: int, side: int, scale: float, kind: Kind
) -> tuple[list[nn.Module], list[int], list[int]]:
    """Return stages, each of which ends in a map, and sizes and channels of these."""
    parts = _between(widths)
    stages: list[nn.Module] = []
    units: list[nn.Module] = []
    sizes, outputs = [], []
    for number, part in enumerate(parts):
        if number:
            units.append(nn.MaxPool2d(2))
            side //= 2
        for plain in part:
            after = width(plain, scale)
            units.append(unit(channels, after, 3, kind, activation=nn.ReLU()))
            channels = after
        if number >= len(parts) - _MAPS:
            stages.append(nn.Sequential(*units))
            units = []
            sizes.append(side)
            outputs.append(channels)
    return stages, sizes, outputs


def _halving(inputs: int, outputs: int, kind: Kind) -> nn.Module:
    """Return a convolution of 1×1 to half the channels and one of 3×3 that halves the size."""
    middle = max(1, outputs // 2)
    return nn.Sequential(
        unit(inputs, middle, 1, kind, activation=nn.ReLU()),
        unit(middle, outputs, 3, kind, stride=2, activation=nn.ReLU()),
    )


def _priors(sizes: Sequence[int], scales: tuple[float, float], ratios: Sequence[float]) -> Tensor:
    """Return centre, width and height of each prior box [P, 4], by map, row, column and shape."""
    step = (scales[1] - scales[0]) / max(len(sizes) - 1, 1)
    boxes = []
    for number, size in enumerate(sizes):
        own = scales[0] + step * number
        mean = (own * (own + step)) ** 0.5
        shapes = [(own, own), (mean, mean)]
        for ratio in ratios:
            root = ratio**0.5
            shapes += [(own * root, own / root), (own / root, own * root)]
        for row, column in itertools.product(range(size), repeat=2):
            centre = (column + 0.5) / size, (row + 0.5) / size
            boxes += [(*centre, min(wide, 1.0), min(high, 1.0)) for wide, high in shapes]
    return torch.tensor(boxes)
