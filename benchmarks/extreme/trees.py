"""Omikuji and PECOS, which learn trees of linear classifiers, in a process of their own.

Called as ``python -m extreme.trees '{"problem": …, "kind": "omikuji" | "pecos"}'``; prints one line
of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from extreme.problems import load
from qcompile.data.metrics import precision_at_k
from qcompile.data.sparse_dataset import SparseDataset

__all__ = ["run"]

_QUERIES = 2_000


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train on a problem and score its test rows."""
    _, train, test = load(request["problem"])
    test = test.subset(test.labelled_rows[:_QUERIES])
    learn = {"omikuji": _omikuji, "pecos": _pecos}[request["kind"]]
    seconds, answers = learn(train, test)
    labels = test.batch(np.arange(len(test))).labels
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "p1": precision_at_k(answers, labels, 1),
        "p5": precision_at_k(answers, labels, 5),
        "peak_mb": peak * 1024 / 1e6,
    }


def _omikuji(train: SparseDataset, test: SparseDataset) -> tuple[float, np.ndarray]:
    import omikuji

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        _write_xmc(path, train)
        settings = omikuji.Model.default_hyper_param()
        settings.n_trees = 1
        start = time.perf_counter()
        model = omikuji.Model.train_on_data(str(path), settings, 2)
        seconds = time.perf_counter() - start
    answers = np.full((len(test), 5), -2, np.int64)
    for row in range(len(test)):
        one = test.batch([row]).features
        found = model.predict(
            list(zip(one.indices.tolist(), one.data.tolist(), strict=True)), top_k=5
        )
        answers[row, : len(found)] = [label for label, _ in found]
    return seconds, answers


def _pecos(train: SparseDataset, test: SparseDataset) -> tuple[float, np.ndarray]:
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    given = sparse.csr_matrix(train.features, dtype=np.float32)
    right = sparse.csr_matrix(train.labels, dtype=np.float32)
    start = time.perf_counter()
    clusters = Indexer.gen(LabelEmbeddingFactory.create(right, given, method="pifa"), threads=2)
    model = XLinearModel.train(given, right, C=clusters, threads=2)
    seconds = time.perf_counter() - start
    asked = sparse.csr_matrix(test.features, dtype=np.float32)
    found = model.predict(asked, beam_size=10, only_topk=5, threads=2)
    answers = np.full((len(test), 5), -2, np.int64)
    for row in range(len(test)):
        part = slice(found.indptr[row], found.indptr[row + 1])
        best = found.indices[part][np.argsort(-found.data[part], kind="stable")]
        answers[row, : len(best)] = best
    return seconds, answers


def _write_xmc(path: Path, data: SparseDataset) -> None:
    with path.open("w") as file:
        file.write(f"{len(data)} {data.num_features} {data.num_labels}\n")
        for row in range(len(data)):
            one = data.batch([row])
            labels = ",".join(map(str, one.labels[0][one.labels[0] >= 0]))
            pairs = zip(one.features.indices, one.features.data, strict=True)
            file.write(f"{labels} {' '.join(f'{i}:{v:.6g}' for i, v in pairs)}\n")


def _answer(request: dict[str, Any]) -> None:
    # Omikuji draws progress bars; only the figures belong on the standard output.
    out = os.dup(1)
    os.dup2(2, 1)
    figures = run(request)
    os.write(out, (json.dumps(figures) + "\n").encode())


if __name__ == "__main__":
    _answer(json.loads(sys.argv[1]))
