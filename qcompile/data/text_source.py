"""Text files of sparse examples, plain or compressed, read in blocks of whole lines.

Formats: the Extreme Classification Repository's files (header ``N D L``, then a line
``label,label index:value …`` for each example), its split files (header ``rows columns``, then a
line ``index:value …`` for each row) and libsvm's (no header, ``#`` begins a comment).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from qcompile.data.compressed_rows import MAX_COLUMNS, Rows
from qcompile.errors import DataError
from qcompile.runtime import _core

__all__ = ["Examples", "TextFile", "libsvm_examples", "matrix_rows", "xmc_examples"]

_BLOCK = 4 << 20
"""Bytes read at a time."""

_LONGEST_LINE = 64 << 20
"""Bytes of the longest line that is read, so that a file without line breaks stays harmless."""

_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Examples:
    """Consecutive examples.

    Args:
        features: their features.
        labels: their labels, without values.
        merged: how many features and labels were named again within their example.
        first_line: number of the line before which none of these examples is.
    """

    features: Rows
    labels: Rows
    merged: int
    first_line: int


class TextFile:
    """Lines of one file; every error names the file.

    Args:
        path: a regular file; gzip, bzip2 and xz are unpacked, whatever the name.

    Raises:
        DataError: by every method: the file cannot be read, is empty, is not 8-bit text or has a
            line of more than 64 MiB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 1
        """Number of the next line."""
        self.ends_in_newline = True
        """Whether the last line read so far had a line break."""
        self._rest = b""
        try:
            with path.open("rb") as raw:
                magic = raw.read(6)
            opener: Any = next((o for m, o in _PACKED.items() if magic.startswith(m)), open)
            self._stream: IO[bytes] = opener(path, "rb")
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
        try:
            self._rest = self._begin()
        except DataError:
            self.close()
            raise

    def _begin(self) -> bytes:
        """Return the first bytes of the text."""
        first = self._read()
        if not first:
            raise self.fail("the file is empty.")
        if first.startswith(_WIDE):
            raise self.fail("UTF-16 or UTF-32 text. Convert it: iconv -t UTF-8.")
        return first.removeprefix(_BYTE_ORDER_MARK)

    def __enter__(self) -> TextFile:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def fail(self, message: str) -> DataError:
        """Return an error that names the file."""
        return DataError(f"{self.path}: {message}")

    def first_line(self) -> bytes:
        """Take the first line off the file, without its line break."""
        while b"\n" not in self._rest and self._fill():
            pass
        line, found, self._rest = self._rest.partition(b"\n")
        self.ends_in_newline = bool(found)
        self.line += 1
        return line

    def header(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Take the first line off the file and return its numbers, one for each name."""
        line = self.first_line()
        tokens = line.split()
        if len(tokens) != len(names) or not all(re.fullmatch(rb"\d{1,18}", t) for t in tokens):
            raise self.fail(
                f"line 1: expected a header of {len(names)} numbers ({', '.join(names)}), found "
                f"{line[:60]!r}. Is it another format? See format=."
            )
        sizes = tuple(int(token) for token in tokens)
        for name, size in zip(names, sizes, strict=True):
            if size > MAX_COLUMNS:
                raise self.fail(f"line 1: {size} {name}, at most {MAX_COLUMNS} can be read.")
        return sizes

    def blocks(self) -> Iterator[bytes]:
        """Yield the rest of the file in blocks of whole lines; count ``line`` yourself."""
        while self._fill():
            end = self._rest.rfind(b"\n") + 1
            if end:
                block, self._rest = self._rest[:end], self._rest[end:]
                self.ends_in_newline = True
                yield block
        if self._rest:
            block, self._rest = self._rest, b""
            self.ends_in_newline = block.endswith(b"\n")
            yield block

    def _fill(self) -> bool:
        """Read on; returns whether there was more."""
        if len(self._rest) > _LONGEST_LINE:
            raise self.fail(
                f"line {self.line}: no line break within {_LONGEST_LINE >> 20} MiB. Is it text?"
            )
        more = self._read()
        self._rest += more
        return bool(more)

    def _read(self) -> bytes:
        try:
            return self._stream.read(_BLOCK)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise self.fail(f"line {self.line} or after: damaged or cut: {error}.") from error


def xmc_examples(file: TextFile, header: tuple[int, ...]) -> Iterator[Examples]:
    """Yield the examples below a header ``N D L``, which is checked against them."""
    examples, features, labels = header
    syntax = {"labels": True, "feature_limit": features, "label_limit": labels}
    yield from _counted(file, examples, _examples(file, **syntax))


def libsvm_examples(file: TextFile, base: int, features: int, labels: int) -> Iterator[Examples]:
    """Yield the examples of a file without header.

    Args:
        file: nothing of it read yet.
        base: index of the first feature, 0 or 1; it is subtracted.
        features: number of features, or a bound.
        labels: number of labels, or a bound.
    """
    syntax = {"comments": True, "labels": True, "feature_base": base}
    yield from _examples(file, feature_limit=features, label_limit=labels, **syntax)


def matrix_rows(file: TextFile, header: tuple[int, ...]) -> Iterator[tuple[Rows, int]]:
    """Yield the rows below a header ``rows columns`` and how many entries were merged."""
    rows, columns = header
    for chunk in _counted(file, rows, _examples(file, feature_limit=columns)):
        yield chunk.features, chunk.merged


def _examples(file: TextFile, **syntax: Any) -> Iterator[Examples]:
    syntax = {"labels": False, "comments": False, "feature_base": 0, "label_limit": 0} | syntax
    for block in file.blocks():
        try:
            parsed = _core.parse_lines(block, file.line, **syntax)
        except DataError as error:
            last = file.line + block.count(b"\n")
            cut = not file.ends_in_newline and str(error).startswith(f"line {last}:")
            raise file.fail(
                f"{error}.{' The file ends there: is it cut?' if cut else ''}"
            ) from error
        feature_ends, features, values, label_ends, labels, lines, merged = parsed
        first, file.line = file.line, file.line + lines
        yield Examples(
            Rows(_starting_at_zero(feature_ends), features, values),
            Rows(_starting_at_zero(label_ends), labels, None),
            merged,
            first,
        )


def _counted(file: TextFile, expected: int, chunks: Iterator[Examples]) -> Iterator[Examples]:
    """Check the number of examples; blank lines after the last one are no examples."""
    found = 0
    for chunk in chunks:
        count = len(chunk.features)
        if found + count > expected:
            kept = expected - found
            filled = np.flatnonzero(chunk.features.counts[kept:] + chunk.labels.counts[kept:])
            if filled.size:
                raise file.fail(
                    f"line {chunk.first_line + kept + int(filled[0])}: the header (line 1) says "
                    f"{expected} rows, here is another. Correct the header or the file."
                )
            chunk = Examples(
                chunk.features.head(kept), chunk.labels.head(kept), chunk.merged, chunk.first_line
            )
        found += len(chunk.features)
        yield chunk
    if found < expected:
        raise file.fail(
            f"line {file.line}: the file ends after {found} rows, the header (line 1) says "
            f"{expected}. Is the file cut?"
        )


def _starting_at_zero(ends: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), ends])
