"""Omikuji and PECOS, which learn trees of linear classifiers, each in a process of its own.

Here their files are written and their answers scored, outside the time and memory that count.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from extreme.problems import load
from qcompile.data.metrics import precision_at_k
from qcompile.data.sparse_dataset import SparseDataset

__all__ = ["LEARNERS", "LearnerError", "learn"]

_QUERIES = 2_000
_HERE = Path(__file__).parent
_PECOS = Path(sys.prefix) / "pecos" / "bin" / "python"  # made by `make bench`
LEARNERS = {
    "omikuji": (Path(sys.executable), _HERE / "learn_omikuji.py"),
    "pecos": (_PECOS, _HERE / "learn_pecos.py"),
}


class LearnerError(Exception):
    """A learner is not installed, failed or took too long."""


def learn(problem: str, kind: str, limit: float) -> dict[str, Any]:
    """Train on a problem and score its first 2,000 test rows.

    Args:
        problem: see ``extreme.problems``.
        kind: one of ``LEARNERS``.
        limit: seconds after which training or prediction is stopped.

    Raises:
        LearnerError: the learner is not installed, failed or took longer than ``limit``.
    """
    python, script = LEARNERS[kind]
    if not python.exists():
        raise LearnerError(f"there is no {python}; run make bench")
    _, train, test = load(problem)
    test = test.subset(test.labelled_rows[:_QUERIES])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, train, test)
        command = [str(python), str(script), name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise LearnerError(f"stopped after {limit:g} s") from None
        if done.returncode:
            last = done.stderr.strip().rsplit("\n", 1)[-1][-300:]
            raise LearnerError(f"exit status {done.returncode}: {last}")
        answers = np.load(folder / "answers.npy")
    labels = test.batch(np.arange(len(test))).labels
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "p1": precision_at_k(answers, labels, 1),
        "p5": precision_at_k(answers, labels, 5),
    }


def _write(folder: Path, train: SparseDataset, test: SparseDataset) -> None:
    matrices = {"train": train.features, "labels": train.labels, "test": test.features}
    for name, matrix in matrices.items():
        file = folder / f"{name}.npz"
        sparse.save_npz(file, sparse.csr_matrix(matrix, dtype=np.float32), compressed=False)
    with (folder / "train.txt").open("w") as text:
        text.write(f"{len(train)} {train.num_features} {train.num_labels}\n")
        for row in range(len(train)):
            one = train.batch([row])
            labels = ",".join(map(str, one.labels[0][one.labels[0] >= 0]))
            pairs = zip(one.features.indices, one.features.data, strict=True)
            text.write(f"{labels} {' '.join(f'{i}:{v:.6g}' for i, v in pairs)}\n")
