"""The head of a network that `qcompile train` trained on the names of cities, and its inputs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import qcompile
from retrieval.heads import Head, keep, kept, synthetic

__all__ = ["NAMES", "load"]

NAMES = ("w670", "w200", "geonames", "w20")
_EPOCHS = 2
_QUERIES = 4_096


def load(name: str, folder: Path) -> Head:
    """Return a head by its name, made and kept in the folder if it is not there yet."""
    if name != "geonames":
        return synthetic(name, folder, queries=_QUERIES)
    place = folder / f"geonames-{_EPOCHS}-{_QUERIES}"
    if not place.is_dir():
        run = folder / f"geonames-run-{_EPOCHS}"
        if not (run / "model.onnx").is_file():
            _train(run)
        keep(_head(run / "model.onnx"), place)
    return kept(name, place)


def _train(run: Path) -> None:
    command = [sys.executable, "-m", "qcompile", "train", "geonames", "--epochs", str(_EPOCHS)]
    done = subprocess.run([*command, "-o", str(run), "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def _head(file: Path) -> Head:
    """Read weight and bias from the served network, and run test rows up to its last layer."""
    from qcompile.data import geonames
    from qcompile.training.serving import padded

    model = onnx.load(file)
    head = next(node for node in model.graph.node if node.op_type == "LinearTopK")
    hidden, *constants = head.input
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias = (onnx.numpy_helper.to_array(arrays[name]) for name in constants[:2])
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(hidden, onnx.TensorProto.FLOAT, None)
    )
    with tempfile.TemporaryDirectory() as place:
        cut = Path(place) / "hidden.onnx"
        onnx.save(model, cut)
        session = onnxruntime.InferenceSession(str(cut), qcompile.session_options())
    _, test = geonames.load()
    rows = np.random.default_rng(0).permutation(len(test))[: 2 * _QUERIES]
    found, labels = [], []
    for some in np.array_split(rows, 64):
        batch = test.batch(some)
        ids, values = padded(batch.features)
        feeds = {"feature_ids": ids.numpy(), "feature_values": values.numpy()}
        found.append(session.run(None, feeds)[0])
        labels.append(np.asarray(batch.labels)[:, 0])
    queries = np.concatenate(found)
    measured = slice(_QUERIES, None)
    return Head(
        "geonames",
        weight,
        bias,
        queries[:_QUERIES],
        queries[measured],
        np.concatenate(labels)[measured],
    )
