"""Folders of files that were derived from others, built once and shared by processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from qcompile.errors import DataError

__all__ = ["default_folder", "derived"]

Loaded = TypeVar("Loaded")

_RECORD = "record.json"
_STRETCH = 1 << 22


def default_folder() -> Path:
    """Return ``$QCOMPILE_CACHE``, or the user's folder for caches, ``~/.cache/qcompile``.

    Raises:
        DataError: the user has no home, as in some containers.
    """
    named = os.environ.get("QCOMPILE_CACHE")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcompile"
    except RuntimeError as error:
        raise DataError(f"cache: {error} Name a folder with cache= or QCOMPILE_CACHE.") from error


def derived(
    cache: str | os.PathLike[str] | None,
    name: str,
    options: dict[str, Any],
    sources: list[Path],
    build: Callable[[Path], dict[str, Any]],
    load: Callable[[Path, dict[str, Any]], Loaded],
) -> Loaded:
    """Load what was derived from some files, building it first unless that was done before.

    A folder is written under a temporary name and then renamed; of several processes that want
    the same one, the first builds it and the others wait. Checksums find damage, and a change of
    the sources' size or time of modification is noticed: either way the folder is built again.

    Args:
        cache: the folder for folders; None for :func:`default_folder`.
        name: what the folder's name begins with.
        options: what the result depends on beside the sources, to be written as JSON.
        sources: existing files.
        build: fills an empty folder and returns what else ``load`` needs, to be written as JSON.
        load: turns a complete folder and what ``build`` returned into the result; may raise
            anything where the folder is damaged.

    Raises:
        DataError: the folder cannot be written, or what ``build`` raises.
    """
    parent = default_folder() if cache is None else Path(cache)
    identity = {"options": options, "sources": [str(path.resolve()) for path in sources]}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = parent / f"{name}-{key}"
    state = {**identity, "state": [_state(path) for path in sources]}

    def existing() -> Loaded | None:
        try:
            return load(folder, _verified(folder, state))
        except Exception:  # whatever is missing or damaged, it is built again
            return None

    result = existing()
    if result is not None:
        return result
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f"{folder.name}.lock"):
            result = existing()  # built while this process waited
            if result is None:
                _build(folder, state, build)
                result = load(folder, _verified(folder, state))
            return result
    except OSError as error:
        raise DataError(
            f"{folder}: the cache cannot be written: {error.strerror or error}. Free space, or "
            f"name another folder with cache= or QCOMPILE_CACHE."
        ) from error


def _build(folder: Path, state: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> None:
    # Left behind by processes that were killed: whoever builds now holds the lock.
    for left in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        content = build(temporary)
        files = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
        record = {**state, "content": content, "files": files}
        (temporary / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _verified(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Return what ``build`` returned; raises ValueError unless the folder is whole and current."""
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    if not isinstance(record, dict) or any(record.get(key) != state[key] for key in state):
        raise ValueError("of other sources")
    for name, expected in record["files"].items():
        if _checksum(folder / Path(name).name) != expected:
            raise ValueError(f"{name} is damaged")
    content: dict[str, Any] = record["content"]
    return content


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _checksum(path: Path) -> list[int]:
    """Return the size and the CRC-32."""
    size = total = 0
    with path.open("rb") as file:
        while block := file.read(_STRETCH):
            size += len(block)
            total = zlib.crc32(block, total)
    return [size, total]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system releases when the process ends, however it does."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
