"""Use an installed qcompile from a folder that holds none of its sources."""

import pathlib
import tempfile

import numpy
import onnxruntime
import torch

import qcompile

root = pathlib.Path(__file__).resolve().parents[1]
assert root not in pathlib.Path(qcompile.__file__).parents, "imported from the checkout"

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5000))
model = qcompile.transform(model, quadratic="Quadra", sparse_output=True)
hidden = torch.randn(4, 8)
output, loss = model(hidden, target=torch.tensor([1, 2, 3, 4999]))
loss.backward()
expected = model.eval()(hidden).detach().numpy()
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model.onnx"
    qcompile.export(model, path, (hidden,))
    session = onnxruntime.InferenceSession(str(path), qcompile.session_options())
    name = session.get_inputs()[0].name
    (scores,) = session.run(None, {name: hidden.numpy()})
numpy.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
print(f"qcompile {qcompile.__version__} installed from a wheel: transform, train, export, serve")
