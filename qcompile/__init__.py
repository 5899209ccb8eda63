"""A model compiler for quadratic neurons and LSH-sparse output layers.

``transform`` rewrites a torch model, ``export`` writes ONNX, ``register`` and ``session_options``
let plain onnxruntime run the result. Importing this package imports neither torch nor
onnxruntime nor triton; each name below loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qcompile.config import LSH, Quadratic
from qcompile.errors import (
    ConfigurationError,
    DataError,
    ExportError,
    PassError,
    PluginError,
    QCompileError,
    TraceError,
)
from qcompile.report import Report

if TYPE_CHECKING:
    from qcompile import analysis as analysis
    from qcompile import memory as memory
    from qcompile import models as models
    from qcompile import nn as nn
    from qcompile import optim as optim
    from qcompile import training as training
    from qcompile.builder import BuildConfig as BuildConfig
    from qcompile.builder.build import autobuild as autobuild
    from qcompile.exporter import export as export
    from qcompile.exporter import export_onnx as export_onnx
    from qcompile.memory import memory_profile as memory_profile
    from qcompile.plugin import get_library_path as get_library_path
    from qcompile.plugin import register as register
    from qcompile.plugin import session_options as session_options
    from qcompile.rewrite import merge_parallel as merge_parallel
    from qcompile.rewrite import transform as transform

__version__ = "0.1.0"

_LAZY = {
    "BuildConfig": "qcompile.builder",
    "autobuild": "qcompile.builder.build",
    "export": "qcompile.exporter",
    "export_onnx": "qcompile.exporter",
    "get_library_path": "qcompile.plugin",
    "memory_profile": "qcompile.memory",
    "merge_parallel": "qcompile.rewrite",
    "register": "qcompile.plugin",
    "session_options": "qcompile.plugin",
    "transform": "qcompile.rewrite",
}
_MODULES = ("analysis", "data", "memory", "models", "nn", "optim", "passes", "training")

__all__ = [
    "LSH",
    "ConfigurationError",
    "DataError",
    "ExportError",
    "PassError",
    "PluginError",
    "QCompileError",
    "Quadratic",
    "Report",
    "TraceError",
    "__version__",
    *sorted(_LAZY),
    *_MODULES,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"qcompile.{name}")
    raise AttributeError(f"module 'qcompile' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
