"""Residual and mobile networks, generators and discriminators: shapes, sizes, gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from qcompile.data.images import load
from qcompile.errors import ConfigurationError
from qcompile.models.gan import Discriminator, Generator, hinge_losses
from qcompile.models.mobilenet import mobilenet, qmobilenet
from qcompile.models.resnet import (
    ResNet,
    qresnet14,
    qresnet20,
    resnet14,
    resnet20,
    resnet32,
)
from qcompile.nn import QuadraticBlock, QuadraticConv2d


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "millions"),
    [(resnet14, 0.18), (resnet20, 0.27), (resnet32, 0.47), (qresnet14, 0.52), (qresnet20, 0.81)],
)
def test_sizes_are_those_that_are_told(build, millions):
    assert size(build()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("build", [resnet14, qresnet14, mobilenet, qmobilenet])
def test_networks_classify_images_of_any_size(build):
    model = build(7, channels=1, scale=0.25)
    for side in (28, 33):
        assert model(torch.randn(2, 1, side, side)).shape == (2, 7)


@pytest.mark.parametrize("build", [qresnet14, qmobilenet])
@pytest.mark.parametrize("form", ["T2", "T3", "T4", "T2_4", "Quadra"])
def test_every_parameter_of_a_quadratic_network_gets_a_gradient(build, form):
    torch.manual_seed(0)
    model = build(3, scale=0.2, form=form)
    nn.functional.cross_entropy(
        model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 0])
    ).backward()
    assert any(isinstance(module, QuadraticBlock) for module in model.modules())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("form", [None, "T4", "Quadra"])
def test_a_generator_and_a_discriminator_play(form):
    torch.manual_seed(0)
    generator = Generator(8, 1, scale=0.1, form=form)
    discriminator = Discriminator(1, scale=0.1, form=form)
    fake = generator(torch.randn(3, 8))
    assert fake.shape == (3, 1, 32, 32)
    assert fake.abs().max() <= 1
    real = torch.rand(3, 1, 32, 32) * 2 - 1
    losses = hinge_losses(discriminator(real), discriminator(fake))
    assert all(loss.isfinite() for loss in losses)
    losses[1].backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_all_weights_of_a_discriminator_are_normalised():
    torch.manual_seed(0)
    discriminator = Discriminator(2, scale=0.2, form="Quadra").train()
    for _ in range(60):  # power iterations
        discriminator(torch.randn(1, 2, 32, 32))
    layers = [m for m in discriminator.modules() if isinstance(m, QuadraticConv2d)]
    assert len(layers) == 3
    for layer in layers:
        for letter in "abc":
            weight = getattr(layer, f"weight_{letter}").detach().flatten(1)
            assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=0.02)


def test_losses_are_the_hinge():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    first, second = hinge_losses(real, fake)
    assert (float(first), float(second)) == (0.25 + 1.0, 1.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNet(15),
        lambda: ResNet(2),
        lambda: resnet14(0),
        lambda: mobilenet(3, channels=0),
        lambda: mobilenet(3, scale=0.0),
        lambda: Generator(0),
        lambda: Discriminator(0),
    ],
)
def test_what_cannot_be_built_is_refused(build):
    with pytest.raises(ConfigurationError):
        build()


def test_beginning_as_a_first_order_network_is_what_lets_a_deep_one_learn():
    """Accuracy on digits after three epochs; with the scales of one it has hardly begun."""
    data = load("digits")
    inputs = torch.from_numpy(data.train_images / np.float32(8) - 1)
    labels = torch.from_numpy(data.train_labels)
    tested = torch.from_numpy(data.test_images / np.float32(8) - 1)

    def learnt(scale: float) -> float:
        torch.manual_seed(0)
        model = qresnet14(10, channels=1, scale=0.25)
        for block in model.modules():
            if isinstance(block, QuadraticBlock):
                nn.init.constant_(block.norm_a.weight, scale)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            for batch in torch.randperm(len(inputs)).split(64):
                loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            answers = model.eval()(tested).argmax(1).numpy()
        return float((answers == data.test_labels).mean())

    assert learnt(0.0) > 0.85
    assert learnt(0.0) > learnt(1.0) + 0.2
