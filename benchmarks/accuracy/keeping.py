"""Finished runs and checkpoints in a folder, so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qcompile.errors import CheckpointError

__all__ = ["Keeper"]


class Keeper:
    """What is kept of each run; nothing without a folder.

    Args:
        folder: for a JSON file of each finished run and a checkpoint of each begun one.
        settings: what figures depend on; a folder of others is refused.

    Raises:
        CheckpointError: the folder is of other settings.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._folder = folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        if path.exists() and json.loads(path.read_text()) != settings:
            raise CheckpointError(
                f"{folder} holds runs of other settings, {path.read_text().strip()}, now "
                f"{json.dumps(settings)}; name another --folder, or remove it."
            )
        _write(path, lambda at: at.write_text(json.dumps(settings)))

    def finished(self, run: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what ``make`` returned for this run, now or before."""
        if self._folder is None:
            return make()
        path = self._path(run, "json")
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        result = make()
        _write(path, lambda at: at.write_text(json.dumps(result)))
        self._path(run, "pt").unlink(missing_ok=True)
        return result

    def load(self, run: str) -> dict[str, Any] | None:
        """Return the run's checkpoint, if there is one."""
        if self._folder is None or not self._path(run, "pt").exists():
            return None
        state: dict[str, Any] = torch.load(self._path(run, "pt"), weights_only=True)
        return state

    def save(self, run: str, state: dict[str, Any]) -> None:
        """Keep a checkpoint in place of the one before."""
        if self._folder is not None:
            _write(self._path(run, "pt"), lambda at: torch.save(state, at))

    def _path(self, run: str, suffix: str) -> Path:
        assert self._folder is not None
        name = re.sub(r"[^\w.-]+", "_", run, flags=re.ASCII)
        return self._folder / f"{name}.{suffix}"


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(path)
