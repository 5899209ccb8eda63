"""Training networks with huge output layers; ``qcompile train`` is its face.

:func:`train` runs a :class:`TrainConfig` over data in
:class:`~qcompile.data.sparse_dataset.SparseDataset` form and returns a :class:`TrainResult`. torch
is imported when one of the names below is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qcompile.training.config import TrainConfig

if TYPE_CHECKING:
    from qcompile.training.extremes import Clipped as Clipped
    from qcompile.training.extremes import ExtremeValues as ExtremeValues
    from qcompile.training.extremes import clip_gradients as clip_gradients
    from qcompile.training.model import ExtremeClassifier as ExtremeClassifier
    from qcompile.training.model import SparseQuadratic as SparseQuadratic
    from qcompile.training.observers import LogLines as LogLines
    from qcompile.training.observers import Observer as Observer
    from qcompile.training.observers import ProgressBar as ProgressBar
    from qcompile.training.observers import Snapshot as Snapshot
    from qcompile.training.observers import TensorBoard as TensorBoard
    from qcompile.training.result import Epoch as Epoch
    from qcompile.training.result import TrainResult as TrainResult
    from qcompile.training.run import train as train
    from qcompile.training.serving import export_classifier as export_classifier

_LAZY = {
    "Clipped": "extremes",
    "Epoch": "result",
    "ExtremeClassifier": "model",
    "ExtremeValues": "extremes",
    "LogLines": "observers",
    "Observer": "observers",
    "ProgressBar": "observers",
    "Snapshot": "observers",
    "SparseQuadratic": "model",
    "TensorBoard": "observers",
    "TrainResult": "result",
    "clip_gradients": "extremes",
    "export_classifier": "serving",
    "train": "run",
}

__all__ = ["TrainConfig", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
