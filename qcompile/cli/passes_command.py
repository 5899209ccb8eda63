"""``qcompile passes``: what can be rewritten, and where it is written down."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
from typing import Any

from qcompile.cli.output import print_json, print_pairs


def run(options: argparse.Namespace) -> int:
    """Print every pass with the first line of its documentation."""
    passes = available()
    if options.json:
        print_json({"passes": passes})
    else:
        print_pairs({entry["name"]: f"{entry['over']}: {entry['summary']}" for entry in passes})
    return 0


def available() -> list[dict[str, Any]]:
    """Return name, subject and summary of every pass in ``qcompile.passes``."""
    from qcompile.passes.base import Pass

    found = []
    for package, over in (("qcompile.passes.fx", "torch"), ("qcompile.passes.onnx", "ONNX")):
        folder = importlib.import_module(package)
        for module_info in pkgutil.iter_modules(folder.__path__):
            module = importlib.import_module(f"{package}.{module_info.name}")
            for _, member in inspect.getmembers(module, inspect.isclass):
                if issubclass(member, Pass) and member.__module__ == module.__name__:
                    summary = (inspect.getdoc(member) or "").split("\n", 1)[0]
                    found.append({"name": member.__name__, "over": over, "summary": summary})
    return found
