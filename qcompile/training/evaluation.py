"""The figures of extreme classification over test data, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qcompile.data.metrics import Evaluation, propensity_weights
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.distributed import Group, Partition, ShardedLSHLinear
from qcompile.errors import DataError
from qcompile.nn.lsh import LSHLinear
from qcompile.runtime import _core
from qcompile.training.model import ExtremeClassifier

__all__ = ["Evaluator"]

_KS = (1, 3, 5)
_NAMES = ("P", "nDCG", "PSP", "PSnDCG")
_ACTIVATIONS = 1 << 21  # of a rank's examples that are scored at a time
_NEURONS = 1 << 16  # packed at a time

TopK = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Evaluator:
    """P@k, nDCG@k, PSP@k and PSnDCG@k for k = 1, 3, 5, every label scored.

    Args:
        train: decides which labels are rare, for the propensity-scored figures.
        test: the examples; those without labels count as answered wrongly, as in pyxclib.
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
        self._rows = np.arange(len(test))
        if not len(test.labelled_rows):
            raise DataError(f"test data: none of {len(test)} rows has a label.")
        self._test, self._group = test, group
        self._ks = tuple(k for k in _KS if k <= train.num_labels)
        self._weights = propensity_weights(train.labels)

    @torch.no_grad()
    def __call__(self, model: ExtremeClassifier) -> dict[str, float]:
        """Return the figures, by name; the model is put into evaluation mode."""
        model.eval()
        top_k = _top_k(model.output)
        sums = Evaluation(self._ks, self._weights)
        own = max(1, _ACTIVATIONS // model.output.in_features)
        together = own * self._group.size
        for begin in range(0, len(self._rows), together):
            rows = self._rows[begin : begin + together]
            sums.add(self._best(model, top_k, rows), self._test.batch(rows).labels)
        results = sums.results()
        return {f"{name}@{k}": results[f"{name}@{k}"] for name in _NAMES for k in self._ks}

    def _best(self, model: ExtremeClassifier, top_k: TopK, rows: np.ndarray) -> Tensor:
        """Return the best labels of some rows, int64 [len(rows), k], on every rank."""
        parts = Partition(len(rows), self._group.size)
        low, high = parts.range(self._group.rank)
        hidden = model.encode(self._test.batch(rows[low:high]).features)
        return self._group.gather(top_k(hidden, self._ks[-1])[1], parts.sizes)


def _top_k(output: LSHLinear) -> TopK:
    """Return what finds the best labels of hidden activations [B, d] exactly.

    Some thousand neurons at a time are packed to int8; their rows are scanned, and the few that may
    be among the best are scored again in fp32 (``docs/serving.md``). Neither a matrix of all scores
    nor a second copy of the weights is made. Of a sharded layer each rank scans its part.
    """
    weight = output.weight.detach()
    bias = torch.zeros(len(weight)) if output.bias is None else output.bias.detach().float()

    def scan(hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries = hidden.contiguous().numpy()
        scores, ids = torch.empty(len(hidden), 0), torch.empty(len(hidden), 0, dtype=torch.int64)
        for begin in range(0, len(weight), _NEURONS):
            rows = weight[begin : begin + _NEURONS].float().contiguous().numpy()
            own = bias[begin : begin + _NEURONS].contiguous().numpy()
            head = _core.Head(rows, own, *_core.pack_rows(rows))
            found = head.top_k(queries, min(k, len(rows)), "auto", torch.get_num_threads())
            scores = torch.cat([scores, torch.from_numpy(found[0])], dim=1)
            ids = torch.cat([ids, torch.from_numpy(found[1]) + begin], dim=1)
            # Stable, so that of equal scores the smaller id comes first.
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            scores, ids = scores[:, :k], ids.gather(1, order)[:, :k]
        return scores, ids

    return partial(output.top_k, scan=scan) if isinstance(output, ShardedLSHLinear) else scan
