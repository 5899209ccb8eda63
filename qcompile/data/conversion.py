"""Turns files of any format into the memory-mapped matrices of a dataset."""

from __future__ import annotations

import operator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qcompile.data.compressed_rows import MAX_COLUMNS, without_zeros
from qcompile.data.matrix_file import MatrixWriter, shift_columns
from qcompile.data.npz_source import NpzMatrix, is_npz
from qcompile.data.text_source import TextFile, libsvm_examples, matrix_rows, xmc_examples
from qcompile.errors import DataError

__all__ = ["LAYOUT", "Request", "convert"]

LAYOUT = 1
"""Version of what :func:`convert` writes and returns."""


@dataclass(frozen=True)
class Request:
    """What is to be read, see :func:`qcompile.data.read_dataset`.

    Raises:
        DataError: a number is out of range.
    """

    format: str
    source: Path
    labels: Path | None
    num_features: int | None
    num_labels: int | None
    index_base: int | None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_features", 1, MAX_COLUMNS),
            ("num_labels", 1, MAX_COLUMNS),
            ("index_base", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not (_is_integer(value) and low <= value <= high):
                raise DataError(f"read_dataset: {name} is {value!r}, expected {low} to {high}.")

    def options(self) -> dict[str, Any]:
        """Return what the result depends on beside the files, ready for JSON."""
        paths = ("source", "labels")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in paths}
        return {k: int(v) if _is_integer(v) else v for k, v in values.items()}


@dataclass
class _Found:
    """What reading showed beside the matrices."""

    num_features: int = 0  # by headers and shapes, else by the highest index
    num_labels: int = 0
    merged: int = 0
    index_base: int = 0
    ends_in_newline: bool = True


def convert(request: Request, folder: Path) -> dict[str, Any]:
    """Read files and write the matrices ``features`` and ``labels``.

    Returns:
        ``num_features``, ``num_labels`` and ``report``, ready for JSON.

    Raises:
        DataError: a file is damaged or contradicts itself or the request.
        OSError: the folder cannot be written.
    """
    with ExitStack() as stack:
        features = stack.enter_context(MatrixWriter(folder, "features", values=True))
        labels = stack.enter_context(MatrixWriter(folder, "labels", values=False))
        readers = {"xmc": _read_xmc, "libsvm": _read_libsvm}
        found = readers.get(request.format, _read_pair)(request, features, labels)
        features.finish()
        labels.finish()
    if not features.rows:
        raise DataError(f"{request.source}: holds no example.")
    highest = features.highest
    if found.index_base == 1 and request.index_base is None:
        shift_columns(folder, "features", -1)
        highest -= 1
    widths = {
        "num_features": _width(request, "num_features", found.num_features, highest),
        "num_labels": _width(request, "num_labels", found.num_labels, labels.highest),
    }
    report = {
        "format": request.format,
        "unlabelled_rows": labels.empty_rows,
        "empty_rows": features.empty_rows,
        "highest_feature": highest,
        "highest_label": labels.highest,
        **{k: v for k, v in asdict(found).items() if k not in widths},
    }
    return {**widths, "report": report}


def _read_xmc(request: Request, features: MatrixWriter, labels: MatrixWriter) -> _Found:
    with TextFile(request.source) as file:
        header = file.header(("examples", "features", "labels"))
        found = _Found(num_features=header[1], num_labels=header[2])
        _append(xmc_examples(file, header), found, features, labels)
        found.ends_in_newline = file.ends_in_newline
        return found


def _read_libsvm(request: Request, features: MatrixWriter, labels: MatrixWriter) -> _Found:
    base = request.index_base
    # Whether indices begin with 1 shows at the end; until then one more than asked for may occur.
    limit = min((request.num_features or MAX_COLUMNS) + (base is None), MAX_COLUMNS)
    found = _Found(index_base=base or 0)
    with TextFile(request.source) as file:
        chunks = libsvm_examples(file, found.index_base, limit, request.num_labels or MAX_COLUMNS)
        _append(chunks, found, features, labels)
        found.ends_in_newline = file.ends_in_newline
    if base is None and features.lowest >= 1:
        found.index_base = 1
    return found


def _append(chunks: Any, found: _Found, features: MatrixWriter, labels: MatrixWriter) -> None:
    for chunk in chunks:
        features.append(chunk.features)
        labels.append(chunk.labels)
        found.merged += chunk.merged


def _read_pair(request: Request, features: MatrixWriter, labels: MatrixWriter) -> _Found:
    assert request.labels is not None
    found = _Found()
    found.num_features = _read_matrix(request.source, features, found)
    found.num_labels = _read_matrix(request.labels, labels, found)
    if features.rows != labels.rows:
        raise DataError(
            f"{request.source} has {features.rows} rows, {request.labels} has {labels.rows}; they "
            f"need the same number."
        )
    return found


def _read_matrix(path: Path, writer: MatrixWriter, found: _Found) -> int:
    """Copy a matrix, text or npz; returns its number of columns."""
    if is_npz(path):
        with NpzMatrix(path) as matrix:
            _append_rows(matrix.rows(), writer, found)
            return matrix.shape[1]
    with TextFile(path) as file:
        header = file.header(("rows", "columns"))
        _append_rows(matrix_rows(file, header), writer, found)
        found.ends_in_newline &= file.ends_in_newline
        return header[1]


def _append_rows(chunks: Any, writer: MatrixWriter, found: _Found) -> None:
    for rows, merged in chunks:
        writer.append(rows if writer.has_values else without_zeros(rows))
        found.merged += merged


def _width(request: Request, name: str, found: int, highest: int) -> int:
    """Return the number of columns: asked for, of the file, or the highest in use plus one."""
    least = max(found, highest + 1)
    wanted = getattr(request, name)
    if wanted is not None and wanted < least:
        raise DataError(
            f"{request.source}: {name} is {wanted}, but the file has {least}"
            + ("; if its indices begin with 1, pass index_base=1." if not found else ".")
        )
    return int(wanted or least)


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)
