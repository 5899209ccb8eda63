"""Small ONNX files to export."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

CLASSES, DEPTH = 40, 12


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(seed)
    return [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each model a few times only."""
    monkeypatch.setattr("qcompile.running.latency.SECONDS", 0.01)


@pytest.fixture
def proto() -> onnx.ModelProto:
    """A network of two layers that ends in a softmax over 40 classes."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        classifier (float[batch, 8] x) => (float[batch, {CLASSES}] y) {{
            a = MatMul(x, w1) h = Relu(a) m = MatMul(h, w2) s = Add(m, b2) y = Softmax(s)
        }}"""
    )
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
    model.graph.initializer.extend(weights(w1=(8, DEPTH), w2=(DEPTH, CLASSES), b2=(CLASSES,)))
    return model


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model, or bytes, under a name."""

    def write(content: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return path

    return write


@pytest.fixture
def files(tmp_path: Path) -> Callable[[], list[str]]:
    """Return a function that lists what the folder holds, hidden files too."""
    return lambda: sorted(path.name for path in tmp_path.iterdir())
