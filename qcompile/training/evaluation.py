"""The figures of extreme classification over test data, in bounded memory."""

from __future__ import annotations

import numpy as np
import torch

from qcompile.data import metrics
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.distributed import Group, Partition
from qcompile.errors import DataError
from qcompile.training.model import ExtremeClassifier
from qcompile.training.scoring import best_labels

__all__ = ["Evaluator"]

_KS = (1, 3, 5)


class Evaluator:
    """P@k, nDCG@k, PSP@k and PSnDCG@k for k = 1, 3, 5, every label scored.

    Args:
        train: decides which labels are rare, for the propensity-scored figures.
        test: the examples; those without labels are left out.
        group: the ranks, which share the examples.

    Raises:
        DataError: ``test`` has other features or labels than ``train``, or no row with a label.
    """

    def __init__(self, train: SparseDataset, test: SparseDataset, group: Group) -> None:
        ours, theirs = ((data.num_features, data.num_labels) for data in (train, test))
        if ours != theirs:
            raise DataError(
                f"test data: has {theirs[0]:,} features and {theirs[1]:,} labels, but the training "
                f"data {ours[0]:,} and {ours[1]:,}; both need the same."
            )
        self._rows = test.labelled_rows
        if not len(self._rows):
            raise DataError(f"test data: none of {len(test)} rows has a label.")
        self._test, self._group = test, group
        self._ks = [k for k in _KS if k <= train.num_labels]
        self._propensity = metrics.propensity_weights(train.labels)

    def __call__(self, model: ExtremeClassifier) -> dict[str, float]:
        """Return the figures, by name; the model is put into evaluation mode."""
        model.eval()
        best = self._best(model)
        labels = self._test.labels[self._rows]
        found: dict[str, float] = {}
        for k in self._ks:
            found[f"P@{k}"] = metrics.precision_at_k(best, labels, k)
        for k in self._ks:
            found[f"nDCG@{k}"] = metrics.ndcg_at_k(best, labels, k)
        for k in self._ks:
            found[f"PSP@{k}"] = metrics.psp_at_k(best, labels, self._propensity, k)
        for k in self._ks:
            found[f"PSnDCG@{k}"] = metrics.psndcg_at_k(best, labels, self._propensity, k)
        return found

    def _best(self, model: ExtremeClassifier) -> np.ndarray:
        """Return the best labels of all rows; each rank asks for its part of them."""
        parts = Partition(len(self._rows), self._group.size)
        low, high = parts.range(self._group.rank)
        own = self._rows[low:high]
        best = best_labels(model, self._test, own, self._ks[-1], max(parts.sizes))
        everything: np.ndarray = self._group.gather(torch.from_numpy(best), parts.sizes).numpy()
        return everything
