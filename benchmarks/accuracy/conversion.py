"""EfficientNet-Lite0 with ImageNet's weights, converted whole and exported, answers as before."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.datasets import load_sample_images
from torch import Tensor

import qcompile
from accuracy.learning import parameters
from qcompile.models import efficientnet_lite0, imagenet_inputs

__all__ = ["CLASSES", "Conversion", "convert", "photographs"]

CLASSES = (698, 985)
"""What the two photographs show: a palace and a daisy."""


@dataclass(frozen=True)
class Conversion:
    """What conversion and export did to the network.

    Args:
        form: of its neurons.
        layers: that became quadratic.
        parameters_before: of the first-order network.
        parameters_after: of the quadratic one.
        difference: largest of the scores in torch, before and after.
        onnx_difference: largest between torch and onnxruntime, as a share of the largest score.
        found: the likeliest class of each photograph, by onnxruntime.
    """

    part: str
    form: str
    layers: int
    parameters_before: int
    parameters_after: int
    difference: float
    onnx_difference: float
    found: list[int]


def photographs() -> Tensor:
    """Return scikit-learn's two photographs as the network wants them, [2, 3, 224, 224]."""
    images = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    small = F.interpolate(
        images.permute(0, 3, 1, 2).float(), (256, 384), mode="bilinear", antialias=True
    )
    return imagenet_inputs(small[:, :, 16:240, 80:304])


@torch.no_grad()
def convert(form: str) -> Conversion:
    """Convert every convolution with its batch norm, export, and compare."""
    model = efficientnet_lite0(pretrained=True).eval()
    wanted = qcompile.Quadratic(form, init="preserve", batch_norm="branch")
    images = photographs()
    new = qcompile.transform(model, quadratic=wanted, example_inputs=(images,), strict=True)
    before, after = model(images), new(images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lite0.onnx"
        qcompile.export(new, path, (images,))
        session = onnxruntime.InferenceSession(path, qcompile.session_options())
        (served,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    scores = torch.from_numpy(served)
    return Conversion(
        "conversion",
        form,
        len(new.qcompile_report.rewritten),
        parameters(model),
        parameters(new),
        float((before - after).abs().max()),
        float((scores - after).abs().max() / after.abs().max()),
        scores.argmax(1).tolist(),
    )
