"""Trains a classifier of images and draws what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from qcompile.analysis.pictures import draw_images
from qcompile.data.image_set import ImageSet
from qcompile.data.image_tensors import image_tensors
from qcompile.training.supervised import Recipe, SupervisedTraining

__all__ = ["ClassifierTraining"]

_RECIPE = Recipe(batch=64, rate=0.1, decay=5e-4, clip=0.5)
"""QuadraLib's (Xu et al., MLSys 2022), with smaller batches."""


class ClassifierTraining(SupervisedTraining):
    """A classifier and an image set.

    Args:
        name: of the run.
        model: from images [B, C, H, W] to scores [B, classes]; is trained in place.
        data: to learn and to test on.
        epochs: number of them.
        folder: gets the checkpoints; what is there is gone on from.
        side: images become squares of so many pixels; ``None`` leaves their size.

    Attributes:
        curve: figures of each epoch: ``seconds``, training ``loss`` and test ``accuracy``.

    Raises:
        CheckpointError: see :class:`qcompile.training.epochs.Epochs`.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        data: ImageSet,
        epochs: int,
        folder: Path,
        *,
        side: int | None = None,
    ) -> None:
        self.data = data
        self._images = image_tensors(data.train_images, data.most, side)
        self._labels = torch.from_numpy(data.train_labels)
        self.test_images = image_tensors(data.test_images, data.most, side)
        settings = {"data": data.name, "images": list(self._images.shape)}
        super().__init__(name, model, len(self._images), _RECIPE, epochs, folder, settings)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training images and their classes at random."""
        for batch in torch.randperm(len(self._images)).split(_RECIPE.batch):
            yield self._images[batch], self._labels[batch]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def measure(self) -> dict[str, float]:
        """Return the accuracy on the test images."""
        return {"accuracy": float((self.predict() == self.data.test_labels).mean())}

    def predict(self) -> NDArray[np.int64]:
        """Return the class of each test image, int64 [M]."""
        self.model.eval()
        with torch.no_grad():
            parts = [self.model(part).argmax(1) for part in self.test_images.split(512)]
        found: NDArray[np.int64] = torch.cat(parts).numpy()
        return found

    def draw(self, path: Path) -> None:
        """Draw ten test images that are classified rightly, and ten wrongly, as a PNG file."""
        found, labels = self.predict(), self.data.test_labels
        right = found == labels
        shown = [*np.flatnonzero(right)[:10], *np.flatnonzero(~right)[:10]]
        titles = [f"{found[at]} ({labels[at]})" for at in shown]
        colours = ["black" if right[at] else "red" for at in shown]
        draw_images(self.test_images[shown], path, titles=titles, colours=colours)
