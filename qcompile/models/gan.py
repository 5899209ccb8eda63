"""A generator and a discriminator of images of 32×32 after SNGAN, first-order or quadratic.

After Miyato et al., "Spectral normalization for GANs", ICLR 2018: a residual generator with batch
norms as in their appendix B.4, and a plain discriminator of spectrally normalised layers, trained
with the hinge loss. A product of two maps of Lipschitz constant one is not itself Lipschitz, but is
so on bounded inputs; the discriminator's quadratic layers get bounded ones through tanh.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import spectral_norm

from qcompile.models.parts import Kind, at_least_one, unit, width
from qcompile.nn import QuadraticConv2d

__all__ = ["Discriminator", "Generator", "hinge_losses"]

_WIDTH = 128


class Generator(nn.Module):
    """From noise to images in −1 to 1.

    Args:
        noise: entries of a noise vector.
        channels: of the images.
        scale: factor of every width.
        form: of the quadratic neurons; ``None`` for first-order convolutions.
        batch_norm: of quadratic blocks.

    Shape:
        [batch, noise] → [batch, channels, 32, 32].

    Raises:
        ConfigurationError: an argument is out of range.
    """

    side = 32

    def __init__(
        self,
        noise: int = 64,
        channels: int = 1,
        *,
        scale: float = 1.0,
        form: str | None = None,
        batch_norm: str = "both",
    ) -> None:
        super().__init__()
        at_least_one("Generator", noise=noise, channels=channels)
        self.noise, self.width = noise, width(_WIDTH, scale)
        kind = Kind(form, batch_norm)
        self.seed = nn.Linear(noise, self.width * 16)
        self.stages = nn.Sequential(*(_Up(self.width, kind) for _ in range(3)))
        self.image = nn.Conv2d(self.width, channels, 3, padding=1)

    def forward(self, noise: Tensor) -> Tensor:
        """Map [batch, noise] to images."""
        y = self.seed(noise).unflatten(1, (self.width, 4, 4))
        image: Tensor = torch.tanh(self.image(self.stages(y)))
        return image


class _Up(nn.Module):
    """Two units at twice the size, and a way round them."""

    def __init__(self, channels: int, kind: Kind) -> None:
        super().__init__()
        self.first = unit(channels, channels, 3, kind, activation=nn.ReLU())
        self.second = unit(channels, channels, 3, kind)

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(x, scale_factor=2.0)
        y: Tensor = F.relu(self.second(self.first(large)) + large)
        return y


class Discriminator(nn.Module):
    """From images to one score each, high for real ones; all weights spectrally normalised.

    Args:
        channels: of the images.
        scale: factor of every width.
        form: of the quadratic neurons; ``None`` for first-order convolutions.

    Shape:
        [batch, channels, 32, 32] → [batch].

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(self, channels: int = 1, *, scale: float = 1.0, form: str | None = None) -> None:
        super().__init__()
        at_least_one("Discriminator", channels=channels)
        plain = width(_WIDTH, scale)
        stages: list[nn.Module] = []
        for inputs in (channels, plain, plain):
            stages += [
                _normalised(inputs, plain, form),
                nn.ReLU() if form is None else nn.Tanh(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*stages)
        self.score = spectral_norm(nn.Linear(plain, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images to scores [batch]."""
        score: Tensor = self.score(self.features(images).sum((2, 3)))
        return score[:, 0]


def _normalised(inputs: int, outputs: int, form: str | None) -> nn.Module:
    if form is None:
        return spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
    layer: nn.Module = QuadraticConv2d(inputs, outputs, 3, padding=1, form=form)
    for name in [n for n, _ in layer.named_parameters() if n.startswith("weight_")]:
        layer = spectral_norm(layer, name)
    return layer


def hinge_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the discriminator's loss and, of the same scores, the generator's.

    Args:
        real: scores of real images [B].
        fake: scores of generated ones [B].
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean(), -fake.mean()
