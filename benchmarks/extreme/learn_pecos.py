"""PECOS's XLinear on ``train.npz``, ``labels.npz`` and ``test.npz`` of the folder named.

Runs in PECOS's own environment, with the settings that it comes with; leaves ``answers.npy`` in the
folder. Prints seconds of training and peak memory as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from pecos.xmc import Indexer, LabelEmbeddingFactory
from pecos.xmc.xlinear.model import XLinearModel
from scipy import sparse

THREADS = 2
TOP = 5


def main() -> None:
    folder = Path(sys.argv[1])
    train, labels, asked = (
        sparse.load_npz(folder / f"{name}.npz") for name in ("train", "labels", "test")
    )
    start = time.perf_counter()
    embedding = LabelEmbeddingFactory.create(labels, train, method="pifa")
    clusters = Indexer.gen(embedding, threads=THREADS)
    model = XLinearModel.train(train, labels, C=clusters, threads=THREADS)
    seconds = time.perf_counter() - start
    found = model.predict(asked, beam_size=10, only_topk=TOP, threads=THREADS)
    answers = np.full((asked.shape[0], TOP), -2, np.int64)
    for row in range(len(answers)):
        part = slice(found.indptr[row], found.indptr[row + 1])
        best = found.indices[part][np.argsort(-found.data[part], kind="stable")]
        answers[row, : len(best)] = best
    np.save(folder / "answers.npy", answers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


if __name__ == "__main__":
    main()
