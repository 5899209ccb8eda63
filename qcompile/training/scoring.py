"""The best label of a few examples, in the middle of training."""

from __future__ import annotations

import torch
from scipy import sparse
from torch import Tensor

from qcompile.training.model import ExtremeClassifier

__all__ = ["likeliest"]

_NEURONS = 1 << 15  # scored at a time


@torch.no_grad()
def likeliest(model: ExtremeClassifier, features: sparse.csr_matrix) -> Tensor:
    """Return the label of highest score of a few examples, int64 [B].

    Reads the output layer as it lies, which in training may lag by the momentum of idle rows, and
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
