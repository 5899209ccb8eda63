"""Every form through torch.onnx with a dynamic batch, read back by plain onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from qcompile.config import FORMS
from qcompile.nn import QuadraticConv1d, QuadraticConv2d, QuadraticConv3d, QuadraticLinear


def models(form: str) -> list[tuple[nn.Module, torch.Tensor]]:
    image = nn.Sequential(
        QuadraticConv2d(3, 4, 3, padding="same", groups=1, form=form),
        nn.ReLU(),
        QuadraticConv2d(4, 6, (2, 3), stride=2, dilation=(1, 2), padding=1, groups=2, form=form),
        nn.Flatten(),
        QuadraticLinear(90, 5, form=form),
    )
    volume = QuadraticConv3d(2, 2, 2, padding_mode="circular", padding=1, form=form)
    sequence = QuadraticConv1d(2, 3, 3, padding_mode="reflect", padding=2, form=form)
    return [
        (image, torch.randn(3, 3, 8, 8)),
        (volume, torch.randn(3, 2, 3, 4, 2)),
        (sequence, torch.randn(3, 2, 6)),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_onnx_export_with_a_dynamic_batch(form, tmp_path):
    for index, (model, x) in enumerate(models(form)):
        path = tmp_path / f"{index}.onnx"
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            model.eval(),
            (x,),
            path,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
        assert {node.domain for node in graph.graph.node} == {""}, "only standard operators"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for size in (1, 2, 5):
            x = torch.randn(size, *x.shape[1:])
            (got,) = session.run(None, {name: x.numpy()})
            with torch.no_grad():
                np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-4, atol=1e-5)
