"""Networks of quadratic neurons, and the first-order ones that they are compared with."""

from qcompile.models.vgg import VGG, qvgg7, vgg7, vgg13

__all__ = ["VGG", "qvgg7", "vgg7", "vgg13"]
