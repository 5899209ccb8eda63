"""What an SSD learns, and what it has found.

Source: Liu et al., "SSD: single shot multibox detector", ECCV 2016, section 2.2: the loss of
equation 1, with three of the worst negatives for each positive, and the inference at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qcompile.models.boxes import decode, encode, match, nms
from qcompile.models.ssd import Raw

__all__ = ["Detections", "Targets", "detect", "multibox_loss", "targets_of"]


class Targets(NamedTuple):
    """What each prior box is to say.

    Args:
        offsets: floating [B, P, 4]; anything where there is no object.
        labels: int64 [B, P], 1 + the class, 0 for no object.
    """

    offsets: Tensor
    labels: Tensor


class Detections(NamedTuple):
    """What was found in one image, by falling score.

    Args:
        boxes: floating [k, 4]: left, top, right and bottom as shares of the image's sides.
        scores: floating [k], probabilities.
        labels: int64 [k], classes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def targets_of(boxes: Sequence[Tensor], labels: Sequence[Tensor], priors: Tensor) -> Targets:
    """Match the objects of some images with prior boxes.

    Args:
        boxes: of each image, floating [n, 4] as shares of its sides, of positive width and height.
        labels: of each image, int64 [n], classes.
        priors: [P, 4], see :class:`qcompile.models.ssd.SSD`.

    Raises:
        DataError: there are more objects than prior boxes.
    """
    offsets, classes = [], []
    for each, kinds in zip(boxes, labels, strict=True):
        found = match(each, priors)
        if not len(each):
            offsets.append(torch.zeros_like(priors))
            classes.append(torch.zeros_like(found))
            continue
        offsets.append(encode(each[found.clamp(min=0)], priors))
        classes.append(torch.where(found < 0, 0, kinds[found.clamp(min=0)] + 1))
    return Targets(torch.stack(offsets), torch.stack(classes))


def multibox_loss(raw: Raw, targets: Targets, negatives: float = 3.0) -> Tensor:
    """Return the loss of boxes plus that of classes, over the number of matched prior boxes.

    Boxes: smooth L1 where there is an object. Classes: cross-entropy there, and where there is none
    for the ``negatives`` times as many prior boxes of the image whose loss is largest.

    Args:
        raw: of the network.
        targets: of the same images.
        negatives: for each positive.

    Returns:
        A scalar, 0 if there is no object in any image.
    """
    positive = targets.labels > 0
    loss = F.cross_entropy(raw.scores.flatten(0, 1), targets.labels.flatten(), reduction="none")
    loss = loss.view_as(targets.labels)
    with torch.no_grad():
        worst = loss.masked_fill(positive, -torch.inf).argsort(1, descending=True)
        rank = worst.argsort(1)
        wanted = negatives * positive.sum(1, keepdim=True)
        negative = (rank < wanted) & ~positive
    boxes = F.smooth_l1_loss(raw.offsets[positive], targets.offsets[positive], reduction="sum")
    return (boxes + loss[positive | negative].sum()) / positive.sum().clamp(min=1)


@torch.no_grad()
def detect(
    raw: Raw,
    priors: Tensor,
    *,
    least: float = 0.01,
    most: int = 200,
    overlap: float = 0.45,
    candidates: int = 100,
) -> list[Detections]:
    """Return the objects that a network has found in each image.

    Args:
        raw: of the network.
        priors: its prior boxes.
        least: probability of what counts at all.
        most: objects of an image, the best ones.
        overlap: of which a box suppresses worse ones of its class.
        candidates: the best boxes of each class that go into the suppression.
    """
    boxes = decode(raw.offsets, priors).clamp(0, 1)
    probabilities = raw.scores.softmax(2)[..., 1:]
    return [
        _detect(own, likely, least, most, overlap, candidates)
        for own, likely in zip(boxes, probabilities, strict=True)
    ]


def _detect(
    boxes: Tensor, likely: Tensor, least: float, most: int, overlap: float, candidates: int
) -> Detections:
    """Find the objects of one image: boxes [P, 4], probabilities [P, classes]."""
    scores, places = likely.topk(min(candidates, len(likely)), dim=0)
    rank, labels = (scores > least).nonzero(as_tuple=True)
    scores, places = scores[rank, labels], places[rank, labels]
    kept = nms(boxes[places], scores, overlap, groups=labels)[:most]
    return Detections(boxes[places[kept]], scores[kept], labels[kept])
