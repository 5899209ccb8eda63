"""Omikuji on ``train.txt`` and ``test.npz`` of the folder named; leaves ``answers.npy`` there.

One tree with the settings that Omikuji comes with. Prints seconds of training and peak memory as
JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import omikuji
from scipy import sparse

THREADS = 2
TOP = 5


def main() -> None:
    folder = Path(sys.argv[1])
    out = os.dup(1)
    os.dup2(2, 1)  # Omikuji draws progress bars; only the figures belong on the standard output
    settings = omikuji.Model.default_hyper_param()
    settings.n_trees = 1
    start = time.perf_counter()
    model = omikuji.Model.train_on_data(str(folder / "train.txt"), settings, THREADS)
    seconds = time.perf_counter() - start
    asked = sparse.load_npz(folder / "test.npz")
    answers = np.full((asked.shape[0], TOP), -2, np.int64)
    for row in range(len(answers)):
        part = slice(asked.indptr[row], asked.indptr[row + 1])
        pairs = zip(asked.indices[part].tolist(), asked.data[part].tolist(), strict=True)
        found = model.predict(list(pairs), top_k=TOP)
        answers[row, : len(found)] = [label for label, _ in found]
    np.save(folder / "answers.npy", answers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    os.write(out, (json.dumps({"seconds": seconds, "peak_mb": peak}) + "\n").encode())


if __name__ == "__main__":
    main()
