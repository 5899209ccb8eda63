"""Networks of quadratic neurons, and the first-order ones that they are compared with."""

from qcompile.models.efficientnet import (
    EfficientNetLite,
    efficientnet_lite0,
    imagenet_inputs,
)
from qcompile.models.gan import Discriminator, Generator, hinge_losses
from qcompile.models.mobilenet import MobileNet, mobilenet, qmobilenet
from qcompile.models.resnet import ResNet, qresnet14, qresnet20, resnet14, resnet20, resnet32
from qcompile.models.ssd import SSD, Boxes, qssd7, ssd7, ssd13
from qcompile.models.vgg import VGG, qvgg7, vgg7, vgg13

__all__ = [
    "SSD",
    "VGG",
    "Boxes",
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
    "qssd7",
    "qvgg7",
    "resnet14",
    "resnet20",
    "resnet32",
    "ssd7",
    "ssd13",
    "vgg7",
    "vgg13",
]
