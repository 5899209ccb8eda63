"""From a trained network to one ONNX file, whose inputs are padded lists of features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from qcompile.nn.lsh import LSHLinear
from qcompile.nn.sparse_linear import SparseLinear
from qcompile.training.model import ExtremeClassifier, SparseQuadratic

__all__ = ["ServedClassifier", "export_classifier", "padded"]


class ServedClassifier(nn.Module):
    """A trained network over padded features, in operators that ONNX has.

    Shares the network's parameters where they are float32, and holds float32 copies of others.

    Args:
        model: the network.
    """

    def __init__(self, model: ExtremeClassifier) -> None:
        super().__init__()
        self.input = _served_input(model.input)
        self.middle = model.middle
        trained = model.output
        output = nn.Linear(trained.in_features, trained.out_features, device="meta")
        output.weight = _parameter(trained.weight)
        output.register_parameter(
            "bias", None if trained.bias is None else _parameter(trained.bias)
        )
        # Of this class the export knows that it is an output layer, however small.
        self.output = LSHLinear.from_linear(output, trained.config)
        self.output.set_extra_state(trained.get_extra_state())

    def forward(self, feature_ids: Tensor, feature_values: Tensor) -> Tensor:
        """Return all scores [B, N].

        Args:
            feature_ids: int64 [B, W], each example's features, none twice; any below F as padding.
            feature_values: float32 [B, W], 0 where there is padding.
        """
        scores: Tensor = self.output(self.middle(self.input(feature_ids, feature_values)))
        return scores


class _ServedSum(nn.Module):
    """``SparseLinear`` over padded features."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.weight = _parameter(layer.weight)
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        self.bias = _parameter(bias)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids, self.weight)
        return (rows * values.unsqueeze(-1)).sum(dim=1) + self.bias


class _ServedQuadratic(nn.Module):
    """``SparseQuadratic`` over padded features."""

    def __init__(self, layer: SparseQuadratic) -> None:
        super().__init__()
        self.linear = None if layer.linear is None else _ServedSum(layer.linear)
        self.squared = None if layer.squared is None else _ServedSum(layer.squared)
        self._combine = layer.combine

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        linear = None if self.linear is None else self.linear(ids, values)
        squared = None if self.squared is None else self.squared(ids, values * values)
        return self._combine(linear, squared)


def _served_input(layer: nn.Module) -> nn.Module:
    if isinstance(layer, SparseQuadratic):
        return _ServedQuadratic(layer)
    assert isinstance(layer, SparseLinear)
    return _ServedSum(layer)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().float(), requires_grad=False)


def padded(features: sparse.csr_matrix) -> tuple[Tensor, Tensor]:
    """Return a CSR batch as ids int64 [B, W] and values float32 [B, W], padded with zeros."""
    counts = np.diff(features.indptr)
    width = max(int(counts.max(initial=0)), 1)
    filled = np.arange(width) < counts[:, None]
    ids = np.zeros(filled.shape, np.int64)
    values = np.zeros(filled.shape, np.float32)
    ids[filled], values[filled] = features.indices, features.data
    return torch.from_numpy(ids), torch.from_numpy(values)


def export_classifier(
    model: ExtremeClassifier,
    path: str | Path,
    examples: sparse.csr_matrix,
    *,
    top_k: int | None = 5,
    recall: float | None = None,
    calibration: sparse.csr_matrix | None = None,
    measure: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Any:
    """Write a trained network as one ONNX file, verified through onnxruntime.

    Its inputs are ``feature_ids`` int64 [batch, width] and ``feature_values`` float32 [batch,
    width]; an example of fewer features is padded with the value 0. Its outputs are the ``top_k``
    best ``scores`` and ``ids``.

    Args:
        model: in evaluation mode.
        path: the file.
        examples: CSR [B ≥ 2, F], to verify with.
        top_k: answers to hand out; ``None`` hands out all scores.
        recall: share of the ``top_k`` best that has to be found, by the fastest search that keeps
            it on ``calibration``; ``None`` finds all.
        calibration: CSR [Q, F], to search and judge settings with.
        measure: time the output layer before and after it is replaced.
        progress: called with a line of text at every step.

    Returns:
        :class:`qcompile.exporter.result.ExportResult`.

    Raises:
        ConfigurationError: of ``recall`` and ``calibration`` one is missing.
        ExportError: the file cannot be written, or answers otherwise than the network.
    """
    from qcompile.exporter import export

    batch, width = torch.export.Dim("batch"), torch.export.Dim("width")
    dynamic = {name: {0: batch, 1: width} for name in ("feature_ids", "feature_values")}
    return export(
        ServedClassifier(model).eval(),
        path,
        padded(examples),
        top_k=None if top_k is None else min(top_k, model.num_labels),
        dynamic_shapes=dynamic,
        recall=recall,
        calibration=None if calibration is None else padded(calibration),
        measure=measure,
        progress=progress,
    )
