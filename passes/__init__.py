"""Rewrites of models: ``fx`` over torch modules, ``onnx`` over ONNX models, one rewrite a file."""

from qcompile.passes.base import Pass, PassManager, PassResult

__all__ = ["Pass", "PassManager", "PassResult"]
