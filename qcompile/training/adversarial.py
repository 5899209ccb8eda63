"""Trains a generator against a discriminator, in epochs, and keeps its running average.

Sources: the hinge loss and spectral normalisation of SNGAN (Miyato et al., ICLR 2018); a step of
each in turn at different rates (Heusel et al., NIPS 2017), the rates of SAGAN (Zhang et al., ICML
2019); the average of the generator's weights after Yazici et al., ICLR 2019.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from qcompile.errors import ConfigurationError
from qcompile.models.gan import Discriminator, Generator, hinge_losses
from qcompile.training.epochs import Epochs, Told
from qcompile.training.extremes import ExtremeValues

__all__ = ["AdversarialTraining"]

BATCH, DECAY = 64, 0.999
GENERATOR_RATE, DISCRIMINATOR_RATE, BETAS = 1e-4, 4e-4, (0.0, 0.9)


_Tensors = tuple[Tensor, ...] | list[Tensor]


class AdversarialTraining:
    """A generator, its average, a discriminator, and a checkpoint after each epoch.

    Args:
        name: of the run.
        generator: is trained in place.
        discriminator: likewise.
        images: float32 [N, C, 32, 32] in −1 to 1; the last ones that make no whole batch of 64 are
            left out of an epoch.
        epochs: number of them.
        folder: gets the checkpoints; what is there is gone on from.
        judge: called after each epoch with :meth:`sample`; returns figures for the curve.

    Attributes:
        curve: figures of each epoch: ``seconds``, ``discriminator loss`` and those of ``judge``.

    Raises:
        ConfigurationError: there are fewer images than a batch has.
        CheckpointError: see :class:`qcompile.training.epochs.Epochs`.
    """

    def __init__(
        self,
        name: str,
        generator: Generator,
        discriminator: Discriminator,
        images: Tensor,
        epochs: int,
        folder: Path,
        judge: Callable[[Callable[[int], Tensor]], dict[str, float]],
    ) -> None:
        if len(images) < BATCH:
            raise ConfigurationError(
                f"{name}: {len(images)} images are fewer than the {BATCH} of a batch."
            )
        self.generator, self.discriminator = generator, discriminator
        self.average = AveragedModel(generator, multi_avg_fn=_average, use_buffers=True)
        self._images, self._judge = images, judge
        self._of_generator = _adam(generator, GENERATOR_RATE)
        self._of_discriminator = _adam(discriminator, DISCRIMINATOR_RATE)
        parts = {
            "generator": generator,
            "discriminator": discriminator,
            "average": self.average,
            "generator's optimiser": self._of_generator,
            "discriminator's optimiser": self._of_discriminator,
        }
        settings = {"images": list(images.shape), "mean": float(images.double().mean())}
        self._epochs = Epochs(name, folder, parts, settings, epochs)
        self.name, self.curve = name, self._epochs.curve

    def train(self, bar: Progress | None = None) -> None:
        """Train what is left of the epochs.

        Raises:
            TrainingError: an output of the generator or of the discriminator is NaN or infinite.
        """
        self._epochs.run(self._epoch, len(self._images) // BATCH, bar)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Return images of the averaged generator, float32 [count, C, 32, 32], always the same."""
        self.average.eval()
        noise = torch.randn(count, self.generator.noise, generator=torch.Generator().manual_seed(1))
        return torch.cat([self.average(part) for part in noise.split(256)])

    def _epoch(self, told: Told) -> dict[str, float]:
        self.generator.train()
        self.discriminator.train()
        began, losses = time.perf_counter(), []
        order = torch.randperm(len(self._images)).split(BATCH)
        watched = (
            ExtremeValues(self.generator, every=20),
            ExtremeValues(self.discriminator, every=20),
        )
        with watched[0], watched[1]:
            for batch in order[: len(self._images) // BATCH]:
                losses.append(self._step(self._images[batch]))
                told(losses[-1])
        seconds = time.perf_counter() - began
        mean = sum(losses) / len(losses)
        return {"seconds": seconds, "discriminator loss": mean, **self._judge(self.sample)}

    def _step(self, real: Tensor) -> float:
        """Take a step of each; return the discriminator's loss."""
        with torch.no_grad():
            fake = self.generator(torch.randn(len(real), self.generator.noise))
        scores = self.discriminator(torch.cat([real, fake])).split(len(real))
        loss, _ = hinge_losses(*scores)
        self._of_discriminator.zero_grad()
        loss.backward()
        self._of_discriminator.step()

        self.discriminator.requires_grad_(False)  # saves its gradients
        fake = self.generator(torch.randn(len(real), self.generator.noise))
        self._of_generator.zero_grad()
        hinge_losses(scores[0].detach(), self.discriminator(fake))[1].backward()
        self._of_generator.step()
        self.discriminator.requires_grad_(True)
        self.average.update_parameters(self.generator)
        return float(loss.detach())


def _average(averages: _Tensors, values: _Tensors, count: Tensor | int) -> None:
    """Follow the values, the more slowly the more steps there were; counters are taken over."""
    decay = min(DECAY, (1 + float(count)) / (10 + float(count)))
    for average, value in zip(averages, values, strict=True):
        if average.is_floating_point():
            average.lerp_(value, 1 - decay)
        else:
            average.copy_(value)


def _adam(model: torch.nn.Module, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), rate, betas=BETAS)
