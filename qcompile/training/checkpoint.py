"""Checkpoints: folders that are whole or do not count.

A checkpoint is ``step-000000001234/`` with ``tensors.safetensors`` (weights, optimiser state) and
``state.json`` (everything else). It is written under a name that is never read, synced to disk and
renamed; then all but the newest two are removed. Tensors are written one by one from where they
lie, so that saving needs no second copy in memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qcompile.errors import CheckpointError

__all__ = ["Checkpoint", "find", "load", "prune", "save"]

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"step-(\d{12})")
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_STRETCH = 1 << 24  # bytes written at a time
_TYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint of step ``step`` into ``folder``, which is made where it is missing.

    A folder belongs to one run: a whole checkpoint of this step is left as it is.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written, for want of space for instance; those before it are
            as they were.
    """
    final = folder / f"step-{step:012d}"
    if _is_whole(final):
        return final
    partial = folder / f".{final.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder)
        partial.mkdir()
        _write_tensors(partial / _TENSORS, tensors)
        # Written last: says of what size the other file is when it is whole.
        size = (partial / _TENSORS).stat().st_size
        content = {"format": FORMAT, "bytes": size, **state}
        with (partial / _STATE).open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync(partial)
        if final.exists():  # damaged, as it is not whole
            shutil.rmtree(final)
        partial.rename(final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written: {error.strerror or error}. Earlier checkpoints are as "
            "they were; make room or choose another folder."
        ) from error
    return final


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


def load(folder: Path) -> Checkpoint:
    """Read the newest whole checkpoint in ``folder``, or the one that ``folder`` is.

    Raises:
        CheckpointError: there is none, or it is damaged or of another release.
    """
    path = find(folder)
    state = _read_state(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is of format {state.get('format')!r}, this release reads {FORMAT}."
        )
    try:
        with safe_open(path / _TENSORS, framework="pt") as file:
            # Copies: the file may be removed, and a mapped tensor would go with it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path / _TENSORS}: is damaged: {error}.") from error
    return Checkpoint(path, tensors, state)


def _names(folder: Path) -> list[Path]:
    """Return the folders that are named like checkpoints, newest first."""
    try:
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(found, reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        return bool(_read_state(path).get("bytes") == (path / _TENSORS).stat().st_size)
    except (CheckpointError, OSError):
        return False


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / _STATE}: cannot be read: {error}.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / _STATE}: is not the state of a run.")
    return state


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file: length of the header, header, tensors."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            if tensor.numel():
                data = _bytes(tensor)
                for begin in range(0, len(data), _STRETCH):
                    file.write(data[begin : begin + _STRETCH])
        file.flush()
        os.fsync(file.fileno())


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: np.ndarray = flat.view(torch.uint8).numpy()
    return memoryview(array)


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
