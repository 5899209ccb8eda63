"""Scores generated images by the features of a classifier that is trained on the same set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

from qcompile.analysis.frechet import Moments, frechet_distance, moments_of
from qcompile.data.image_set import ImageSet
from qcompile.data.image_tensors import image_tensors
from qcompile.models import resnet14
from qcompile.training.classifying import ClassifierTraining

__all__ = ["FrechetJudge"]

_SEEN = 20_000  # images that the classifier is trained on at least, repeats counted
_SCALE, _BATCH = 0.5, 256


class FrechetJudge:
    """The Fréchet distance between generated images and the test images of a set.

    Its classifier is a ResNet-14 of half the widths, 32 features an image, so that some hundred
    images are enough for a covariance. Scores compare with those of the same set and side only.

    Args:
        data: real images.
        side: pixels of a generated image's side.
        folder: gets the classifier's checkpoints.

    Attributes:
        images: the training images, float32 [N, C, side, side] in −1 to 1.

    Raises:
        CheckpointError: see :class:`qcompile.training.epochs.Epochs`.
    """

    def __init__(self, data: ImageSet, side: int, folder: Path) -> None:
        self.images = image_tensors(data.train_images, data.most, side)
        epochs = -(-_SEEN // len(self.images))
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            network = resnet14(data.classes, channels=self.images.shape[1], scale=_SCALE)
        self._classifier = ClassifierTraining("judge", network, data, epochs, folder, side=side)
        self._embed, self._real = network.embed, Moments()

    def train(self, bar: Progress | None = None) -> None:
        """Train the classifier, or what is left of it."""
        self._classifier.train(bar)
        self._classifier.model.eval()
        self._real = moments_of(self._embed, self._classifier.test_images.split(_BATCH))

    @property
    def accuracy(self) -> float:
        """Of the trained classifier on the test images."""
        return self._classifier.curve[-1]["accuracy"]

    def score(self, images: Tensor) -> float:
        """Return the distance of images, float32 [n, C, side, side]."""
        return frechet_distance(moments_of(self._embed, images.split(_BATCH)), self._real)

    def floor(self) -> float:
        """Return the distance of as many training images as there are test images."""
        return self.score(self.images[:: max(1, len(self.images) // self._real.count)])

    def __call__(self, sample: Callable[[int], Tensor]) -> dict[str, float]:
        """Return the ``score`` of as many samples as there are test images."""
        return {"score": self.score(sample(self._real.count))}
