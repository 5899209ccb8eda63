"""Boxes: overlap, the code that a detector learns, matching, and non-maximum suppression.

Boxes are (left, top, right, bottom) in any unit. Prior boxes are (centre x, centre y, width,
height). Source: Liu et al., "SSD: single shot multibox detector", ECCV 2016, section 2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.errors import DataError

__all__ = ["VARIANCES", "corners", "decode", "encode", "intersection_over_union", "match", "nms"]

VARIANCES = (0.1, 0.2)
"""What offsets of centres and logarithms of sides are divided by, so that both are about one."""


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlap of each box with each other one.

    Args:
        first: floating [n, 4].
        second: floating [m, 4].

    Returns:
        [n, m] in 0 to 1: the area of the intersection over that of the union; 0 for two boxes
        without an area.
    """
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:], second[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    union = _area(first)[:, None] + _area(second) - shared
    return torch.where(union > 0, shared / union.where(union > 0, 1), 0)


def corners(boxes: Tensor) -> Tensor:
    """Turn (centre x, centre y, width, height) [..., 4] into (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """Return what a detector learns to say of boxes: offsets from their prior boxes.

    Args:
        boxes: floating [..., 4], of positive width and height.
        priors: [..., 4] with a centre.

    Returns:
        [..., 4]: (c − p)/(0.1 s) for both coordinates of the centre, log(w/s)/0.2 for both sides,
        where s is the prior's side.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    sides = boxes[..., 2:] - boxes[..., :2]
    shift = (centre - priors[..., :2]) / (priors[..., 2:] * VARIANCES[0])
    return torch.cat([shift, (sides / priors[..., 2:]).log() / VARIANCES[1]], -1)


def decode(offsets: Tensor, priors: Tensor) -> Tensor:
    """Undo :func:`encode`: boxes from offsets and prior boxes, both [..., 4]."""
    centre = priors[..., :2] + offsets[..., :2] * VARIANCES[0] * priors[..., 2:]
    sides = priors[..., 2:] * (offsets[..., 2:] * VARIANCES[1]).exp()
    return corners(torch.cat([centre, sides], -1))


def match(boxes: Tensor, priors: Tensor, threshold: float = 0.5) -> Tensor:
    """Say which object each prior box is to find.

    Each object gets a prior box of its own, the pair with the largest overlap first; then every
    prior box left that overlaps an object by ``threshold`` or more gets that which it overlaps
    most.

    Args:
        boxes: floating [n, 4], the objects.
        priors: floating [P, 4] with a centre.
        threshold: of the intersection over union.

    Returns:
        int64 [P]: the object, −1 for none.

    Raises:
        DataError: there are more objects than prior boxes.
    """
    if len(boxes) > len(priors):
        raise DataError(f"match: {len(boxes):,} objects for {len(priors):,} prior boxes.")
    found = torch.full((len(priors),), -1)
    if not len(boxes):
        return found
    overlap = intersection_over_union(boxes, corners(priors))
    best, which = overlap.max(0)
    found = torch.where(best >= threshold, which, -1)
    left = overlap.clone()
    for _ in range(len(boxes)):
        box, prior = divmod(int(left.argmax()), len(priors))
        found[prior] = box
        left[box], left[:, prior] = -1, -1
    return found


def nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float = 0.45,
    *,
    groups: Tensor | None = None,
) -> Tensor:
    """Keep the best of boxes that overlap: non-maximum suppression.

    Args:
        boxes: floating [n, 4]; the overlaps of all pairs are held at once.
        scores: floating [n].
        threshold: a box goes if it overlaps a better one that stays by more.
        groups: integer [n]; boxes of different groups, classes say, do not suppress each other.

    Returns:
        int64 [k], places of those that stay, by falling score; of equal scores the first comes
        first.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    clash = intersection_over_union(ranked, ranked) > threshold
    if groups is not None:
        clash &= groups[order][:, None] == groups[order]
    stays = torch.ones(len(order), dtype=torch.bool)
    for place, row in enumerate(clash.cpu().triu(1)):
        if stays[place]:
            stays &= ~row
    return order[stays.to(order.device)]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
