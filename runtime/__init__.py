"""The C++ runtime: hashing, sampling, sparse kernels, index building; and NumPy references."""

from __future__ import annotations

import importlib
from typing import Any

from qcompile.errors import PluginError


def __getattr__(name: str) -> Any:
    # Reached by the first `from qcompile.runtime import _core` alone: a failure gets a remedy.
    if name != "_core":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}._core")
    except ImportError as error:
        raise PluginError(
            f"the compiled core {__name__}._core cannot be imported: {error}. Reinstall "
            "torch-qcompile, from source where no wheel fits: python -m pip install . in a "
            "checkout, with a C++20 compiler. If you are in that checkout, leave it: its folder "
            "qcompile hides the installed package."
        ) from error
