"""Tensors on disk: one safetensors file for each rank of a run, read back by any number of ranks.

The first rank's file holds the tensors that all ranks have alike and its rows of those that are
divided; the other files hold the other rows. Which rows a rank has follows from the number of
ranks (:class:`qcompile.distributed.Partition`), so a run of one rank is the case of one file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qcompile.distributed.partition import Partition
from qcompile.errors import CheckpointError

__all__ = ["file_name", "read_tensors", "write_tensors"]

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


def file_name(rank: int, ranks: int) -> str:
    """Return the name of one rank's file."""
    if ranks == 1:
        return "tensors.safetensors"
    return f"tensors-{rank:05d}-of-{ranks:05d}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file and sync it to disk, from where the tensors lie.

    Raises:
        OSError: it cannot be written.
    """
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


def read_tensors(
    folder: Path, files: int, divided: Mapping[str, int], rank: int, ranks: int
) -> dict[str, Tensor]:
    """Read what one of ``ranks`` ranks needs of the files that ``files`` ranks have written.

    Args:
        folder: where they are.
        files: their number.
        divided: rows that a divided tensor has over all files, by name.
        rank: whose rows to read.
        ranks: among how many they are divided now.

    Returns:
        Copies, so that the files may be removed.

    Raises:
        CheckpointError: a file is damaged, or has other rows than it should.
    """
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, list[Tensor]] = {name: [] for name in divided}
    wanted = {name: Partition(rows, ranks).range(rank) for name, rows in divided.items()}
    for number in range(files):
        held = {name: Partition(rows, files).range(number) for name, rows in divided.items()}
        overlapping = [name for name in divided if _overlap(held[name], wanted[name])]
        if number and not overlapping:
            continue
        path = folder / file_name(number, files)
        try:
            with safe_open(path, framework="pt") as file:
                if number == 0:
                    names = [name for name in file.keys() if name not in divided]  # noqa: SIM118
                    tensors.update({name: file.get_tensor(name).clone() for name in names})
                for name in overlapping:
                    pieces[name].append(_rows(file, path, name, held[name], wanted[name]))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is damaged: {error}.") from error
    missing = [name for name, parts in pieces.items() if not parts]
    if missing:
        raise CheckpointError(f"{folder}: {missing[0]} has no rows for rank {rank} of {ranks}.")
    return tensors | {name: _joined(parts) for name, parts in pieces.items()}


def _rows(
    file: Any, path: Path, name: str, held: tuple[int, int], wanted: tuple[int, int]
) -> Tensor:
    stored = file.get_slice(name)
    rows = held[1] - held[0]
    if stored.get_shape()[:1] != [rows]:
        raise CheckpointError(
            f"{path}: {name} has the shape {stored.get_shape()}, expected {rows} rows."
        )
    low, high = max(held[0], wanted[0]), min(held[1], wanted[1])
    piece: Tensor = stored[low - held[0] : high - held[0]]
    return piece


def _overlap(a: Sequence[int], b: Sequence[int]) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0].clone() if len(parts) == 1 else torch.cat(list(parts))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
