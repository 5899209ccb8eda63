"""Networks of quadratic neurons, and the first-order ones that they are compared with."""

from qcompile.models.efficientnet import (
    EfficientNetLite,
    efficientnet_lite0,
    imagenet_inputs,
)
from qcompile.models.gan import Discriminator, Generator, hinge_losses
from qcompile.models.mobilenet import MobileNet, mobilenet, qmobilenet
from qcompile.models.resnet import ResNet, qresnet14, qresnet20, resnet14, resnet20, resnet32
from qcompile.models.vgg import VGG, qvgg7, vgg7, vgg13

__all__ = [
    "VGG",
    "Discriminator",
    "EfficientNetLite",
    "Generator",
    "MobileNet",
    "ResNet",
    "efficientnet_lite0",
    "hinge_losses",
    "imagenet_inputs",
    "mobilenet",
    "qmobilenet",
    "qresnet14",
    "qresnet20",
    "qvgg7",
    "resnet14",
    "resnet20",
    "resnet32",
    "vgg7",
    "vgg13",
]
