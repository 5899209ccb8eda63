"""Writes models as ONNX files that plain onnxruntime serves."""

from __future__ import annotations

from qcompile.exporter.onnx_model import export_onnx
from qcompile.exporter.result import ExportResult

__all__ = ["ExportResult", "export", "export_onnx"]


def __getattr__(name: str):
    if name == "export":  # the road from torch; an ONNX file needs no torch
        from qcompile.exporter.torch_model import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
