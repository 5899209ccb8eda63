"""What every benchmark does with its figures: one JSON document, with the machine described."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qcompile.runtime import _core


def machine() -> str:
    """Name the processor and what it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""
    )
    sets = ", ".join(_core.supported_isas())
    return f"{model or platform.processor()}, {os.cpu_count()} cores, {sets}"


def record(
    path: Path | None,
    packages: Iterable[str],
    rows: Iterable[Any],
    bars: list[dict[str, Any]],
    device: str | None = None,
) -> int:
    """Write the figures, whole or not at all, and return the exit status that the bars ask for.

    Args:
        path: the file, or ``None`` for none.
        packages: distributions whose versions matter.
        rows: dataclasses, one a measurement.
        bars: ``name``, ``value``, ``target`` and ``ok`` of each.
        device: what was measured, if not the processor.
    """
    if path is not None:
        document = {
            "machine": device or machine(),
            "load_average": round(os.getloadavg()[0], 2),
            "versions": {name: version(name) for name in packages},
            "rows": [asdict(row) for row in rows],
            "bars": bars,
        }
        with tempfile.NamedTemporaryFile("w", dir=path.absolute().parent, delete=False) as file:
            json.dump(document, file, indent=2)
            file.write("\n")
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
    return 0 if all(bar["ok"] for bar in bars) else 1
