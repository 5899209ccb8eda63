"""Trains an SSD, measures its mean average precision and draws what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qcompile.analysis.pictures import Mark, draw_images
from qcompile.data.detection_metrics import DetectionEvaluation
from qcompile.data.detection_set import Annotated, DetectionSet
from qcompile.data.image_tensors import image_tensors
from qcompile.models.multibox import Detections, Targets, detect, multibox_loss, targets_of
from qcompile.models.ssd import SSD, Raw
from qcompile.training.supervised import Recipe, SupervisedTraining

__all__ = ["DetectorTraining"]

_RECIPE = Recipe(batch=32, rate=0.05, decay=5e-4, clip=2.0)


class DetectorTraining(SupervisedTraining):
    """A detector and its data; half the images are mirrored.

    Args:
        name: of the run.
        model: is trained in place.
        train: to learn from.
        test: to measure on.
        epochs: number of them.
        folder: gets the checkpoints; what is there is gone on from.

    Attributes:
        curve: figures of each epoch: ``seconds``, ``loss``, ``mAP`` and the average precision of
            each class, by the area.

    Raises:
        CheckpointError: see :class:`qcompile.training.epochs.Epochs`.
    """

    model: SSD

    def __init__(
        self,
        name: str,
        model: SSD,
        train: DetectionSet,
        test: DetectionSet,
        epochs: int,
        folder: Path,
    ) -> None:
        self._learnt, self.test = train, test
        settings = {"images": len(train), "classes": list(train.classes), "side": model.side}
        super().__init__(name, model, len(train), _RECIPE, epochs, folder, settings)

    def batches(self) -> Iterator[tuple[Tensor, Targets]]:
        """Yield the training images and what their prior boxes are to say, at random."""
        for batch in torch.randperm(len(self._learnt)).split(_RECIPE.batch):
            images = [self._learnt[int(place)] for place in batch]
            mirrored = (torch.rand(len(batch)) < 0.5).tolist()
            images = [_mirror(i) if m else i for i, m in zip(images, mirrored, strict=True)]
            boxes = [torch.from_numpy(each.boxes[~each.difficult]) for each in images]
            labels = [torch.from_numpy(each.labels[~each.difficult]) for each in images]
            yield _stacked(images), targets_of(boxes, labels, self.model.priors)

    def loss(self, outputs: Raw, targets: Targets) -> Tensor:
        """Return the multibox loss."""
        return multibox_loss(outputs, targets)

    def detect(self, images: Sequence[Annotated]) -> list[Detections]:
        """Return what is found in each image."""
        self.model.eval()
        with torch.no_grad():
            raw = self.model(_stacked(images))
        return detect(raw, self.model.priors)

    def draw(self, path: Path, count: int = 20, least: float = 0.4) -> None:
        """Draw test images as a PNG file: objects green, what is found surer than ``least`` red."""
        images = [self.test[place] for place in range(min(count, len(self.test)))]
        marks = []
        for found, truth in zip(self.detect(images), images, strict=True):
            marks.append([Mark(box.tolist()) for box in truth.boxes])
            for box, score, label in zip(*found, strict=True):
                if score > least:
                    text = f"{self.test.classes[int(label)]} {score:.2f}"
                    marks[-1].append(Mark(box.tolist(), text, "red"))
        draw_images(_stacked(images), path, marks=marks, columns=5, side=2.0)

    def measure(self) -> dict[str, float]:
        """Return the mean average precision on the test images, and that of each class."""
        evaluation = DetectionEvaluation(self.test.classes)
        for start in range(0, len(self.test), _RECIPE.batch):
            stop = min(start + _RECIPE.batch, len(self.test))
            images = [self.test[place] for place in range(start, stop)]
            for found, truth in zip(self.detect(images), images, strict=True):
                evaluation.add(*found, truth)
        return evaluation.results()


def _stacked(images: Sequence[Annotated]) -> Tensor:
    return image_tensors(np.stack([each.image for each in images]))


def _mirror(each: Annotated) -> Annotated:
    left, top, right, bottom = each.boxes.T
    boxes = np.stack([1 - right, top, 1 - left, bottom], 1)
    image = np.ascontiguousarray(each.image[..., ::-1])
    return Annotated(image, boxes, each.labels, each.difficult)
