"""Checkpoints: folders that are whole or do not count.

A checkpoint is ``step-000000001234/`` with ``tensors.safetensors`` (weights, optimiser state) and
``state.json`` (everything else). It is written under a name that is never read, synced to disk and
renamed; then all but the newest two are removed. Tensors are written one by one from where they
lie, so that saving needs no second copy in memory.

Of several ranks each writes a file of its own, into one folder that all of them see; the first
writes ``state.json`` when all files are whole, and renames. Any number of ranks can read it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qcompile.distributed import Group
from qcompile.errors import CheckpointError
from qcompile.training.tensor_files import file_name, read_tensors, write_tensors

__all__ = ["Checkpoint", "find", "load", "prune", "save"]

FORMAT = 1
KEPT = 2
_MOST_FILES = 1 << 16
_MOST_ROWS = 1 << 40
_NAME = re.compile(r"step-(\d{12})")
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Args:
        path: the folder.
        tensors: by name.
        state: plain JSON types.
    """

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    divided: Mapping[str, int] | None = None,
    group: Group | None = None,
) -> Path:
    """Write a checkpoint of step ``step`` into ``folder``, which is made where it is missing.

    A folder belongs to one run: a whole checkpoint of this step is left as it is. With several
    ranks a collective; those after the first write their rows of divided tensors alone.

    Args:
        folder: where checkpoints are.
        step: of the run.
        tensors: by name.
        state: plain JSON types, those of the first rank.
        divided: rows over all ranks of the tensors that these share, by name.
        group: the ranks; alone by default.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: some rank cannot write it, for want of space for instance; those before it
            are as they were.
    """
    group, divided = group or Group(), divided or {}
    final = folder / f"step-{step:012d}"
    whole, process = group.table(int(_is_whole(final)), os.getpid())[0]
    if whole:
        return final
    partial = folder / f".{final.name}.{process}.partial"
    own = partial / file_name(group.rank, group.size)
    kept = tensors if group.rank == 0 else {name: tensors[name] for name in divided}
    try:
        _together(group, lambda: _prepare(partial), group.rank == 0)
        _together(group, lambda: write_tensors(own, kept))
        # Written last: says of what size the other files are when they are whole.
        sizes = [row[0] for row in group.table(own.stat().st_size)]
        content = {"format": FORMAT, "bytes": sizes, "divided": dict(divided), **state}
        _together(group, lambda: _commit(partial, final, content), group.rank == 0)
    except OSError as error:
        if group.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written: {error.strerror or error}. Earlier checkpoints are as "
            "they were; make room or choose another folder."
        ) from error
    return final


def _together(group: Group, action: Callable[[], None], mine: bool = True) -> None:
    """Do something on some ranks; an OSError of one is one on all."""
    error = None
    try:
        if mine:
            action()
    except OSError as raised:
        error = raised
    failed = [rank for rank, row in enumerate(group.table(int(error is not None))) if row[0]]
    if error is not None:
        raise error
    if failed:
        raise OSError(f"rank {failed[0]} could not do its part; see its message")


def _prepare(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    _remove_partial(partial.parent)
    partial.mkdir()


def _commit(partial: Path, final: Path, content: Mapping[str, Any]) -> None:
    with (partial / _STATE).open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(partial)
    if final.exists():  # damaged, as it is not whole
        shutil.rmtree(final)
    partial.rename(final)
    _sync(final.parent)


def prune(folder: Path, kept: int = KEPT) -> None:
    """Remove all but the newest whole checkpoints."""
    for path in _names(folder)[kept:]:
        shutil.rmtree(path, ignore_errors=True)


def find(folder: Path) -> Path:
    """Return the newest whole checkpoint in ``folder``, which may also be one itself.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / _STATE).is_file():
        return folder
    for path in _names(folder):
        if _is_whole(path):
            return path
    raise CheckpointError(
        f"{folder}: there is no whole checkpoint here. Name the folder that a run was given as "
        "--output, or begin afresh without --resume."
    )


def load(folder: Path, group: Group | None = None) -> Checkpoint:
    """Read the newest whole checkpoint in ``folder``, or the one that ``folder`` is.

    Args:
        folder: see above.
        group: the ranks, each of which gets its rows of divided tensors; alone by default, which
            gets all.

    Raises:
        CheckpointError: there is none, or it is damaged or of another release.
    """
    path = find(folder)
    state = _read_state(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is of format {state.get('format')!r}, this release reads {FORMAT}."
        )
    divided, files = state.get("divided"), len(_sizes(path, state))
    if not isinstance(divided, dict) or not all(
        isinstance(rows, int) and 0 < rows <= _MOST_ROWS for rows in divided.values()
    ):
        raise CheckpointError(f"{path / _STATE}: says nonsense of divided tensors: {divided!r}.")
    rank, ranks = (group.rank, group.size) if group else (0, 1)
    return Checkpoint(path, read_tensors(path, files, divided, rank, ranks), state)


def _names(folder: Path) -> list[Path]:
    """Return the folders that are named like checkpoints, newest first."""
    try:
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(found, reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        sizes = _sizes(path, _read_state(path))
        names = [file_name(rank, len(sizes)) for rank in range(len(sizes))]
        return sizes == [(path / name).stat().st_size for name in names]
    except (CheckpointError, OSError):
        return False


def _sizes(path: Path, state: Mapping[str, Any]) -> list[Any]:
    """Return what ``state`` says of the sizes of the files, by rank."""
    sizes = state.get("bytes")
    if not isinstance(sizes, list) or not 0 < len(sizes) <= _MOST_FILES:
        raise CheckpointError(f"{path / _STATE}: does not name the sizes of the other files.")
    return sizes


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / _STATE}: cannot be read: {error}.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / _STATE}: is not the state of a run.")
    return state


def _remove_partial(folder: Path) -> None:
    """Remove what runs that were killed while saving have left."""
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
