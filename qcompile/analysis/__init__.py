"""What a network does inside: distributions, quadratic shares, dead units, attributions.

:func:`analyze` runs a model over some batches and returns an :class:`Analysis`, which prints as a
table and writes TensorBoard files and one HTML page. ``qcompile analyze`` is its command.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.analysis.attribution import integrated_gradients as integrated_gradients
    from qcompile.analysis.collect import analyze as analyze
    from qcompile.analysis.result import Analysis as Analysis
    from qcompile.analysis.result import LayerReport as LayerReport
    from qcompile.analysis.tally import Distribution as Distribution

_LAZY = {
    "Analysis": "result",
    "Distribution": "tally",
    "LayerReport": "result",
    "analyze": "collect",
    "integrated_gradients": "attribution",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
