"""``qcompile env``: versions, processor and plugin, for a bug report."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from qcompile import __version__
from qcompile.cli.output import print_json, print_pairs
from qcompile.errors import PluginError

_DISTRIBUTIONS = ("torch", "onnxruntime", "onnx", "onnx-ir", "onnxscript", "numpy", "triton")
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")


def run(options: argparse.Namespace) -> int:
    """Print the environment; status 1 where the plugin cannot be found."""
    facts = environment()
    if options.json:
        print_json(facts)
    else:
        print_pairs(facts)
    return 0 if facts["plugin_error"] is None else 1


def environment() -> dict[str, Any]:
    """Return versions, processor and plugin without importing torch or onnxruntime."""
    facts: dict[str, Any] = {
        "qcompile": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "instruction_sets": " ".join(_instruction_sets()) or "none of those used",
    }
    for name in _DISTRIBUTIONS:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = None
    facts["plugin"], facts["plugin_error"] = _plugin()
    return facts


def _instruction_sets() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return [name for name in _INSTRUCTION_SETS if name in flags]


def _plugin() -> tuple[str | None, str | None]:
    from qcompile.plugin import get_library_path

    try:
        return get_library_path(), None
    except PluginError as error:
        return None, str(error)
