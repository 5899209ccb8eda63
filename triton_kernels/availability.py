"""Whether kernels can be launched at all."""

from __future__ import annotations

import functools
import importlib.util


@functools.cache
def has_triton() -> bool:
    """Return whether triton is installed."""
    return importlib.util.find_spec("triton") is not None
