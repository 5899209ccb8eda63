"""Trains a classifier of images as the papers on quadratic networks do, in epochs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import CosineAnnealingLR

from qcompile.analysis.pictures import draw_images
from qcompile.data.image_set import ImageSet
from qcompile.data.image_tensors import image_tensors
from qcompile.optim import quadratic_groups
from qcompile.training.epochs import Epochs, Told
from qcompile.training.supervised import train_epoch

__all__ = ["ImageClassifier"]

BATCH, RATE, DECAY, CLIP = 64, 0.1, 5e-4, 0.5


class ImageClassifier:
    """A network, an image set, and a checkpoint after each epoch; SGD and cosine after QuadraLib.

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
        self.model, self.data = model, data
        self._images = image_tensors(data.train_images, data.most, side)
        self._labels = torch.from_numpy(data.train_labels)
        self.test_images = image_tensors(data.test_images, data.most, side)
        groups = quadratic_groups(model, RATE, scale=1.0, weight_decay=DECAY)
        self._optimizer = torch.optim.SGD(groups, momentum=0.9)
        self._steps = -(-len(self._images) // BATCH)
        self._schedule = CosineAnnealingLR(self._optimizer, epochs * self._steps)
        parts = {"model": model, "optimizer": self._optimizer, "schedule": self._schedule}
        settings = {"data": data.name, "images": list(self._images.shape)}
        self._epochs = Epochs(name, folder, parts, settings, epochs)
        self.name, self.curve = name, self._epochs.curve

    def train(self, bar: Progress | None = None) -> None:
        """Train what is left of the epochs.

        Raises:
            TrainingError: the network diverges.
        """
        self._epochs.run(self._epoch, self._steps, bar)

    def draw_predictions(self, path: Path) -> None:
        """Draw ten test images that are classified rightly, and ten wrongly, as a PNG file."""
        found, labels = self.predict(), self.data.test_labels
        right = found == labels
        shown = [*np.flatnonzero(right)[:10], *np.flatnonzero(~right)[:10]]
        titles = [f"{found[at]} ({labels[at]})" for at in shown]
        colours = ["black" if right[at] else "red" for at in shown]
        draw_images(self.test_images[shown], path, titles=titles, colours=colours)

    def predict(self) -> NDArray[np.int64]:
        """Return the class of each test image, int64 [M]."""
        self.model.eval()
        with torch.no_grad():
            parts = [self.model(part).argmax(1) for part in self.test_images.split(512)]
        found: NDArray[np.int64] = torch.cat(parts).numpy()
        return found

    def _epoch(self, told: Told) -> dict[str, float]:
        began = time.perf_counter()
        loss = train_epoch(
            self.model,
            self._batches(),
            F.cross_entropy,
            self._optimizer,
            self._schedule,
            clip=CLIP,
            told=told,
        )
        seconds = time.perf_counter() - began
        accuracy = float((self.predict() == self.data.test_labels).mean())
        return {"seconds": seconds, "loss": loss, "accuracy": accuracy}

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.randperm(len(self._images)).split(BATCH):
            yield self._images[batch], self._labels[batch]
