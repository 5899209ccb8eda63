"""Reads whole files whose size somebody else decides."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from qcompile.errors import DataError

__all__ = ["MOST_BYTES", "read_file"]

MOST_BYTES = 1 << 30


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return what a file holds, unpacked if it is gzipped.

    Args:
        path: of the file.
        most: bytes that it may hold, unpacked.

    Raises:
        DataError: it cannot be read, or holds more.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error
    if len(content) > most:
        raise DataError(f"{path}: holds more than {most:,} bytes.")
    return content
