"""The best labels of many examples, exactly, without a matrix of all scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.distributed import ShardedLSHLinear
from qcompile.runtime import _core
from qcompile.training.model import ExtremeClassifier

__all__ = ["best_labels", "likeliest"]

_EXAMPLES = 256  # scored at a time
_NEURONS = 1 << 15  # scored at a time where rows are not packed


@torch.no_grad()
def best_labels(
    model: ExtremeClassifier,
    dataset: SparseDataset,
    rows: np.ndarray,
    k: int,
    most: int = 0,
) -> np.ndarray:
    """Return the k labels of highest score of some rows, best first, int64 [len(rows), k].

    Rows of the output layer are packed to int8, scanned, and the few that may be among the best
    are scored again in fp32, so the answer is exact (``docs/serving.md``); it needs a quarter of
    the weights' bytes beside them. Of a sharded layer each rank scans its part; then this is a
    collective, and ``rows`` are those of this rank.

    Args:
        model: in evaluation mode.
        dataset: where the rows are.
        rows: integers.
        k: at most the number of labels.
        most: rows of the rank that has most, as ranks that answer together make as many calls.
    """
    top_k: Callable[..., Any] = _PackedHead(model.output).top_k
    if isinstance(model.output, ShardedLSHLinear):
        top_k = partial(model.output.top_k, scan=top_k)
    found = np.empty((len(rows), k), dtype=np.int64)
    done = 0
    for features in _batches(dataset, rows, most):
        _, ids = top_k(model.encode(features), k)
        found[done : done + len(ids)] = ids
        done += len(ids)
    return found


@torch.no_grad()
def likeliest(model: ExtremeClassifier, features: sparse.csr_matrix) -> Tensor:
    """Return the label of highest score of a few examples, int64 [B].

    Reads the weights as they lie, which in training may lag by the momentum of idle rows, and
    leaves no trace: neither optimiser nor tables notice.
    """
    hidden = model.encode(features)
    weight, bias = model.output.weight, model.output.bias
    best = torch.full((len(hidden),), -torch.inf)
    label = torch.zeros(len(hidden), dtype=torch.int64)
    for begin in range(0, len(weight), _NEURONS):
        scores = hidden @ weight[begin : begin + _NEURONS].float().t()
        if bias is not None:
            scores += bias[begin : begin + _NEURONS].float()
        top, where = scores.max(dim=1)
        label = torch.where(top > best, where + begin, label)
        best = torch.maximum(best, top)
    return label


class _PackedHead:
    """An output layer's weights, packed for the exact scan."""

    def __init__(self, output: nn.Module) -> None:
        weight = output.weight.detach().float().contiguous().numpy()
        bias = np.zeros(len(weight), np.float32)
        if output.bias is not None:
            bias[:] = output.bias.detach().float().numpy()
        self._head = _core.Head(weight, bias, *_core.pack_rows(weight))

    def top_k(self, hidden: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores [B, k] and labels int64 [B, k], best first."""
        rows = hidden.contiguous().numpy()
        scores, ids = self._head.top_k(rows, k, "auto", torch.get_num_threads())
        return scores, ids


def _batches(dataset: SparseDataset, rows: np.ndarray, most: int) -> Iterator[sparse.csr_matrix]:
    for begin in range(0, max(len(rows), most), _EXAMPLES):
        yield dataset.batch(rows[begin : begin + _EXAMPLES]).features
