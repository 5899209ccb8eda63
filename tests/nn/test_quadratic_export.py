"""Every form through torch.onnx with a dynamic batch, read back by plain onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from qcompile.config import FORMS
from qcompile.nn import QuadraticConv1d, QuadraticConv2d, QuadraticConv3d, QuadraticLinear


class Everything(nn.Module):
    """One model of every kind of layer, as each export costs seconds."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.image = nn.Sequential(
            QuadraticConv2d(
                4, 6, (1, 2), stride=2, dilation=(1, 2), padding=1, groups=2, form=form
            ),
            nn.ReLU(),
            nn.Flatten(),
            QuadraticLinear(96, 5, form=form),
        )
        self.volume = QuadraticConv3d(
            2, 2, (1, 2, 1), padding_mode="circular", padding=(0, 1, 1), form=form
        )
        self.sequence = QuadraticConv1d(2, 3, 2, padding="same", padding_mode="reflect", form=form)

    def forward(self, image, volume, sequence):
        return self.image(image), self.volume(volume), self.sequence(sequence)


def inputs(batch: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(batch, *shape) for shape in [(4, 6, 8), (2, 3, 4, 2), (2, 6)])


@pytest.mark.parametrize("form", FORMS)
def test_onnx_export_with_a_dynamic_batch(form, tmp_path):
    path = tmp_path / "model.onnx"
    model = Everything(form).eval()
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model, inputs(3), path, dynamo=True, dynamic_shapes=(batch,) * 3, verbose=False
    )
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}, "only standard operators"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for size in (1, 2, 5):
        given = inputs(size)
        got = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
        with torch.no_grad():
            wanted = model(*given)
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)
