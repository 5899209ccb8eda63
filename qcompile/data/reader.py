"""Reads datasets of extreme classification from files, once, into a memory-mapped cache."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

from qcompile.data.cache import derived
from qcompile.data.conversion import LAYOUT, Request, convert
from qcompile.data.matrix_file import map_matrix
from qcompile.data.npz_source import is_npz
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.data.text_source import TextFile
from qcompile.errors import DataError, QCompileWarning

__all__ = ["FORMATS", "read_dataset"]

FORMATS = ("auto", "xmc", "split", "libsvm", "npz")


def read_dataset(
    path: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    format: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    num_features: int | None = None,
    num_labels: int | None = None,
    index_base: int | None = None,
) -> SparseDataset:
    """Read a dataset; the first time it is parsed, later it is mapped from the cache.

    Formats: ``xmc`` (header ``N D L``, lines ``label,label index:value …``), ``split`` (two files
    with headers ``rows columns`` and lines ``index:value …``), ``libsvm`` (as ``xmc`` without the
    header) and ``npz`` (two CSR matrices by ``scipy.sparse.save_npz``). Text may be compressed by
    gzip, bzip2 or xz. docs/data.md has the details.

    Args:
        path: the file, of ``split`` and ``npz`` that of the features.
        labels: of ``split`` and ``npz`` the file of the labels; by default the one beside ``path``
            whose name has Y in place of X: ``trn_X_Xf.txt`` and ``trn_X_Y.txt``, ``X.trn.npz``
            and ``Y.trn.npz``.
        format: one of :data:`FORMATS`; ``auto`` looks at the first line.
        cache: folder for the cache, by default ``$QCOMPILE_CACHE`` or ``~/.cache/qcompile``.
        num_features: width of the features, at least what the file says or uses. Give a test file
            that of its training file.
        num_labels: likewise of the labels.
        index_base: of ``libsvm`` the index of the first feature, 0 or 1; by default 1 if the file
            nowhere uses 0. Give a test file that of its training file.

    Returns:
        The dataset; its ``report`` says ``format``, ``index_base``, ``unlabelled_rows``,
        ``empty_rows`` (no feature), ``merged`` (features and labels named again in their row),
        ``highest_feature`` and ``highest_label``.

    Raises:
        DataError: the file is missing, damaged or contradicts itself, with its path and the line;
            or the cache cannot be written.
    """
    if format not in FORMATS:
        raise DataError(f"read_dataset: format {format!r}, expected one of {', '.join(FORMATS)}.")
    source = _existing(Path(path))
    kind = _detect(source) if format == "auto" else format
    partner = None
    if kind in ("split", "npz"):
        partner = _existing(Path(labels) if labels is not None else _partner(source))
    elif labels is not None:
        raise DataError(f"{path}: a file of the format {kind} holds its labels: leave out labels=.")
    if index_base is not None and kind != "libsvm":
        raise DataError(
            f"{path}: indices of the format {kind} begin with 0: leave out index_base=."
        )
    request = Request(kind, source, partner, num_features, num_labels, index_base)

    def build(folder: Path) -> dict[str, Any]:
        return convert(request, folder)

    name = "dataset-" + re.sub(r"[^\w.]", "_", source.name)[:40]
    sources = [source] if partner is None else [source, partner]
    options = {"layout": LAYOUT, **request.options()}
    dataset = derived(cache, name, options, sources, build, _load)
    if not dataset.report["ends_in_newline"]:
        warnings.warn(
            f"{path}: the last line has no line break. If the file was cut there, its last value "
            f"may be wrong; otherwise end the file with a line break.",
            QCompileWarning,
            stacklevel=2,
        )
    return dataset


def _load(folder: Path, content: dict[str, Any]) -> SparseDataset:
    features = map_matrix(folder, "features", content["num_features"], values=True)
    labels = map_matrix(folder, "labels", content["num_labels"], values=False)
    return SparseDataset(features, labels, report=content["report"])


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the file in it.")
    if not path.exists():
        raise DataError(f"{path}: there is no such file.")
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file; save its contents to one first.")
    return path


def _partner(path: Path) -> Path:
    """Return the file of the labels that belongs to one of features, by its name."""
    name = path.name
    other = name.replace("_X_Xf", "_X_Y") if "_X_Xf" in name else re.sub(r"^X(?=[._])", "Y", name)
    if other == name or not path.with_name(other).is_file():
        raise DataError(f"{path}: the file of its labels is not beside it; name it with labels=.")
    return path.with_name(other)


def _detect(path: Path) -> str:
    """Tell the format from the first line."""
    if is_npz(path):
        return "npz"
    with TextFile(path) as text:
        line = text.first_line()
        while line.split(b"#")[0].strip() == b"" and text.ends_in_newline:
            line = text.first_line()
    tokens = line.split(b"#")[0].split()
    if len(tokens) in (2, 3) and all(token.isdigit() for token in tokens):
        return "split" if len(tokens) == 2 else "xmc"
    if tokens and (b":" in tokens[0] or re.fullmatch(rb"[-+.,\d]+", tokens[0])):
        return "libsvm"
    raise DataError(
        f"{path}: line {text.line - 1}: cannot tell the format from {line[:60]!r}; name it with "
        f"format=, one of {', '.join(FORMATS[1:])}."
    )
