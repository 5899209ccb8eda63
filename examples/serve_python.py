"""Serves an output layer of 100,000 classes from Python: several threads, one session.

    python examples/serve_python.py [FOLDER]    # where the model is kept, otherwise nowhere

The files that it leaves are what `serve_ray.py` and `serve_cpp.cc` serve.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import qcompile

CLASSES, WIDTH, BEST = 100_000, 64, 5


def export(folder: Path) -> Path:
    """Write a network of two layers, with the classes' ids and scores in place of all scores."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)).eval()
    example = torch.randn(2, WIDTH)
    batch = ({0: torch.export.Dim("batch")},)
    path = folder / "model.onnx"
    qcompile.export(
        model, path, (example,), top_k=BEST, dynamic_shapes=batch, measure=False, external_above=0
    )
    return path


def open_session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open the model with the plugin: it is fast, and answers as it would without."""
    options = qcompile.session_options()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options)


def serve(folder: Path) -> None:
    path = export(folder)
    session = open_session(path)
    name = session.get_inputs()[0].name
    requests = np.random.default_rng(0).normal(size=(200, 1, WIDTH)).astype(np.float32)

    def answer(request: np.ndarray) -> np.ndarray:
        """Run may be called by any number of threads at a time."""
        return session.run(["ids"], {name: request})[0]

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        together = np.concatenate(list(pool.map(answer, requests)))
    elapsed = time.perf_counter() - start
    print(f"{len(requests)} requests by two threads: {len(requests) / elapsed:,.0f} a second")
    print("the best classes of the first:", *together[0])

    plain = onnxruntime.InferenceSession(str(path))  # no plugin: standard operators, same answers
    ids = plain.run(["ids"], {name: requests[:, 0]})[0]
    print(f"the same without the plugin: {(ids == together).mean():.2%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        serve(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            serve(Path(place))
