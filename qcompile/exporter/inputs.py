"""Inputs to verify a model with: those of the user, or random ones that fit its signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.calibration.queries import load
from qcompile.errors import DataError, ExportError
from qcompile.running.sessions import RunTooLongError, Session

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}
_SIZES = ((2, 8), (2, 64), (1, 8), (1, 1), (2, 1), (1, 64), (2, 224), (1, 224), (1, 320), (4, 16))
"""What (the first, every other) symbolic dimension is tried as."""

_MOST_ELEMENTS = 1 << 26


def given(inputs: str | Path | Mapping[str, Any], session: Session) -> dict[str, np.ndarray]:
    """Return the user's inputs, held against the model's signature.

    Args:
        inputs: an ``.npz`` file with one array for each input, or a mapping.
        session: the model.

    Raises:
        DataError: the file cannot be read, or names, types or shapes do not fit.
    """
    arrays = load(Path(inputs)) if isinstance(inputs, str | Path) else dict(inputs)
    wanted = {argument.name: argument for argument in session.inputs}
    if set(arrays) != set(wanted):
        raise DataError(
            f"inputs: the model reads {', '.join(sorted(wanted))}; "
            f"given are {', '.join(sorted(arrays)) or 'none'}."
        )
    feeds = {}
    for name, argument in wanted.items():
        array = np.asarray(arrays[name])
        dtype = _TYPES.get(argument.type)
        if dtype is not None and array.dtype != dtype:
            raise DataError(f"inputs: {name!r} is {array.dtype}; the model reads {argument.type}.")
        fits = len(array.shape) == len(argument.shape) and all(
            not isinstance(size, int) or size == held
            for size, held in zip(argument.shape, array.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"inputs: {name!r} has shape {list(array.shape)}; the model reads {argument.shape}."
            )
        feeds[name] = array
    return feeds


def invented(session: Session, model: ir.Model) -> dict[str, np.ndarray]:
    """Return random inputs on which the model runs.

    Floats are normal, token ids lie in the table that they index, masks are one. Symbolic
    dimensions of one name get one size; several small sizes are tried.

    Raises:
        ExportError: the model runs on none of them.
    """
    failure: Exception | None = None
    tables = _table_sizes(model)
    for first, rest in _SIZES:
        try:
            feeds = dict(_random(session, first, rest, tables))
            session.run(feeds)
            return feeds
        except RunTooLongError:
            raise
        except ExportError as error:
            failure = error
    raise ExportError(
        f"{session.model.name}: cannot be verified, it runs on no random input of its signature "
        f"({failure}). Give real inputs, one array for each input (--inputs FILE.npz)."
    )


def _random(
    session: Session, first: int, rest: int, tables: Mapping[str, int]
) -> Iterator[tuple[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    sizes: dict[str, int] = {}
    for argument in session.inputs:
        dtype = _TYPES.get(argument.type)
        if dtype is None:
            raise ExportError(f"input {argument.name!r} is {argument.type}, which is not invented")
        shape = []
        for axis, size in enumerate(argument.shape):
            if not isinstance(size, int):
                fallback = first if axis == 0 else rest
                size = fallback if size is None else sizes.setdefault(size, fallback)
            shape.append(size)
        if np.prod(shape, dtype=float) > _MOST_ELEMENTS:
            raise ExportError(f"input {argument.name!r} of shape {shape} is too large to invent")
        yield argument.name, _array(generator, argument.name, shape, dtype, tables)


def _array(generator, name: str, shape: list[int], dtype, tables: Mapping[str, int]) -> np.ndarray:
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(shape).astype(dtype)
    if dtype is np.bool_ or "mask" in name.lower():
        return np.ones(shape, dtype)
    # Where nothing says what the numbers mean, zero and one are safe for lengths, types and ids.
    largest = min(tables.get(name, 2), 1 + np.iinfo(dtype).max)
    return generator.integers(0, max(largest, 1), shape).astype(dtype)


def _table_sizes(model: ir.Model) -> dict[str, int]:
    """Return the rows of the table that each input indexes, where a Gather shows them."""
    sizes = {}
    for value in model.graph.inputs:
        readers = list(value.uses())
        for use in list(readers):
            if use.node.op_type in ("Cast", "Identity"):
                readers += use.node.outputs[0].uses()
        rows = [
            table.shape[0]
            for node, index in readers
            if node.op_type == "Gather" and index == 1 and (table := node.inputs[0]) is not None
            if table.shape and isinstance(table.shape[0], int) and _axis(node) == 0
        ]
        if rows and value.name:
            sizes[value.name] = min(rows)
    return sizes


def _axis(node: ir.Node) -> int:
    found = node.attributes.get("axis")
    return 0 if found is None else found.as_int()
