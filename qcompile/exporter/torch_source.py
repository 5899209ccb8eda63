"""Loads torch models that the command line names: programs, callables and pickled modules.

A ``.pt2`` file can carry pickled objects, compiled libraries and expressions that torch evaluates;
a file that does is refused, because loading it could run any code.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from qcompile.errors import ExportError
from qcompile.exporter.torch_trace import quiet
from qcompile.running.sessions import brief

_MOST_BYTES = 64 << 30
_LARGEST_RATIO = 200
"""An archive that unpacks to more than this multiple of its size is no model."""

_PLAIN = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.keyword),
    *(ast.Constant, ast.UnaryOp, ast.USub, ast.Tuple),
)


def load(spec: str, allow_pickle: bool) -> nn.Module | ExportedProgram:
    """Return the model that ``spec`` names; see :func:`qcompile.exporter.reading.load_source`."""
    path = Path(spec)
    if path.suffix == ".pt2":
        return load_program(path, allow_pickle)
    if path.suffix in (".pt", ".pth", ".pkl", ".bin"):
        return _load_pickle(path, allow_pickle)
    module_name, colon, name = spec.partition(":")
    if colon and name and not path.exists():
        return _call(spec, module_name, name)
    raise ExportError(
        f"{spec}: not a model that can be read; name a .onnx or .pt2 file, or "
        "package.module:callable."
    )


def load_program(path: Path, allow_pickle: bool = False) -> ExportedProgram:
    """Load a program that ``torch.export.save`` wrote.

    Raises:
        ExportError: the file is missing, damaged or no program, or carries more than data.
    """
    _present(path)
    try:
        with quiet(), zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path)
            if not allow_pickle:
                _check_contents(archive, path)
        with quiet():
            program = torch.export.load(path)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"{path}: this is no program of torch.export, or it is damaged: {brief(error)}. Save "
            "it anew with torch.export.save."
        ) from error
    if not isinstance(program, ExportedProgram):
        raise ExportError(f"{path}: holds no program of torch.export.")
    if not allow_pickle:
        program._guards_code = []  # Python source, which calling the program would run
    return program


def _check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    total = sum(entry.file_size for entry in archive.infolist())
    limit = min(_MOST_BYTES, _LARGEST_RATIO * path.stat().st_size + (1 << 20))
    if total > limit:
        raise ExportError(f"{path}: claims {total:,} bytes of content, more than a model holds.")


def _check_contents(archive: zipfile.ZipFile, path: Path) -> None:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any("aotinductor" in name or name.endswith((".so", ".dll")) for name in entries):
        raise ExportError(
            f"{path}: carries compiled code. Only programs are read; with --allow-pickle it would "
            "be loaded and could run anything."
        )
    for name in entries:
        if name.endswith(".json"):
            document = json.loads(archive.read(name))
            for pickled in _pickled(document):
                _check_data(archive, path, f"{name.rpartition('/')[0]}/{pickled}")
            for expression in _expressions(document):
                _check_expression(expression, path)
        elif name.endswith((".pt", ".pth", ".pkl")):
            _check_data(archive, path, name)


def _check_data(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    content = archive.read(name)
    try:
        if content:
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise ExportError(
            f"{path}: {name} holds more than tensors: loading it could run any code. Save the "
            "program from a model whose constants are tensors, or pass --allow-pickle if you "
            "trust the file."
        ) from error


def _pickled(document: Any) -> Iterator[str]:
    """Yield the files that a table of weights or constants says are pickled."""
    if isinstance(document, dict) and isinstance(document.get("config"), dict):
        for entry in document["config"].values():
            if isinstance(entry, dict) and entry.get("use_pickle"):
                yield str(entry.get("path_name"))


def _expressions(document: Any) -> Iterator[str]:
    pending = [document]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if "expr_str" in item:
                yield str(item["expr_str"])
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _check_expression(expression: str, path: Path) -> None:
    """Let through only what sympy prints: constructors applied to numbers, names and each other."""
    if len(expression) < 10_000:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
        names = [node.id for node in nodes if isinstance(node, ast.Name)]
        if all(isinstance(node, _PLAIN) for node in nodes) and all(
            name[:1].isupper() and name.isalnum() for name in names
        ):
            return
    raise ExportError(f"{path}: the size {expression[:80]!r} is no plain expression.")


def _load_pickle(path: Path, allow_pickle: bool) -> nn.Module:
    _present(path)
    if not allow_pickle:
        raise ExportError(
            f"{path}: a pickled module can run any code when it is loaded. Save the model with "
            "torch.export.save (.pt2), or pass --allow-pickle if you trust the file."
        )
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ExportError(f"{path}: cannot be loaded: {brief(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ExportError(
            f"{path}: holds {type(model).__name__}, not a module; weights alone are no model. Name "
            "a callable that builds the module and loads them: package.module:callable."
        )
    return model


def _call(spec: str, module_name: str, name: str) -> nn.Module | ExportedProgram:
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does, so that the user's own module is found
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module_name)
        for part in name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ExportError(f"{spec}: cannot be found: {brief(error)}.") from error
    if not isinstance(target, nn.Module):
        if not callable(target):
            raise ExportError(f"{spec}: is {type(target).__name__}, not a callable or a module.")
        try:
            target = target()
        except Exception as error:
            raise ExportError(f"{spec}: fails: {type(error).__name__}: {brief(error)}.") from error
    if not isinstance(target, nn.Module | ExportedProgram):
        raise ExportError(f"{spec}: returned {type(target).__name__}, not a torch module.")
    return target


def _present(path: Path) -> None:
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise ExportError(f"{path}: the file is empty.")
