"""What the passes share that exchange layers for ones whose active neurons are found by hashing."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import nn

from qcompile.config import LSH
from qcompile.errors import QCompileError
from qcompile.passes.base import Pass
from qcompile.passes.fx.layers import Layer
from qcompile.passes.fx.tracing import Trace
from qcompile.report import Entry, Status

__all__ = ["ALREADY", "SubstituteSparse", "is_hashed", "is_quadratic"]

ALREADY = "already LSH-sparse"


class SubstituteSparse(Pass[nn.Module]):
    """Base of these passes.

    Args:
        config: how to hash, and which layers to take.
        trace: of the model that the pass will be called on.
    """

    what: ClassVar[str]  # of layer it takes: output or hidden

    def __init__(self, config: LSH, trace: Trace) -> None:
        self._config = config
        self._trace = trace

    @property
    def name(self) -> str:
        """The name that reports and errors use."""
        return f"sparse_{self.what}"

    def _entry(self, layer: Layer, reason: str, status: Status) -> Entry:
        count, kind = layer.parameters, type(layer.module).__name__
        return Entry(self.name, layer.label, kind, status, reason, (count, count))

    def _built(self, layer: Layer, build: Callable[[], nn.Module]) -> nn.Module:
        """Return what ``build`` makes of a layer; its error names the layer."""
        try:
            return build()
        except QCompileError as error:
            raise type(error)(f"{self.what} layer {layer.label!r}: {error}") from error


def is_hashed(module: nn.Module) -> bool:
    """Whether a layer finds its active neurons by hashing already."""
    from qcompile.nn.hashed import Hashed

    return isinstance(module, Hashed)


def is_quadratic(module: nn.Module) -> bool:
    """Whether a layer consists of quadratic neurons."""
    from qcompile.nn.quadratic import QuadraticLayer

    return isinstance(module, QuadraticLayer)
