"""Hidden activations of a model on calibration inputs: the queries that its output layer gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import DataError

MOST_QUERIES = 100_000
"""Queries of one half beyond which further calls are left out."""

Feeds = Mapping[str, NDArray[Any]]
Run = Callable[[Feeds], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Queries:
    """Queries of one half of the calibration inputs, as they come.

    Args:
        calls: what the layer reads in each call of the model, float32 [n, d].
        rows: for each query, the row of inputs that it stems from [sum of n].
    """

    calls: list[NDArray[np.float32]]
    rows: NDArray[np.int64]

    @property
    def all(self) -> NDArray[np.float32]:
        """The queries of every call [n, d]."""
        return np.concatenate(self.calls)


def in_calls(arrays: Mapping[str, NDArray[Any]], size: int, where: str) -> list[Feeds]:
    """Cut arrays of many rows into the inputs of calls.

    Args:
        arrays: one for each input, all of one length.
        size: rows of one call; what is left over is left out.
        where: names the arrays in errors.

    Raises:
        DataError: the lengths differ, or are less than ``size``.
    """
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise DataError(
            f"{where}: the arrays must be of one length, their first dimension, which is cut into "
            f"calls; {told or 'there are none'}."
        )
    count = next(iter(lengths.values())) // size
    if count < 1:
        raise DataError(f"{where}: there are fewer rows than the {size} of one call.")
    return [
        {name: array[at * size : (at + 1) * size] for name, array in arrays.items()}
        for at in range(count)
    ]


def halves(calls: Sequence[Feeds], seed: int) -> tuple[list[Feeds], list[Feeds]]:
    """Divide calls by chance into those to search with and those to judge by.

    Raises:
        DataError: there are fewer than two.
    """
    if len(calls) < 2:
        raise DataError(
            "calibration: one call leaves nothing to judge by; give inputs for two calls or more, "
            "better for hundreds."
        )
    order = np.random.default_rng(seed).permutation(len(calls))
    middle = len(calls) // 2
    return [calls[at] for at in order[:middle]], [calls[at] for at in order[middle:]]


def collect(
    run: Run, names: Sequence[str], calls: Iterable[Feeds], told: Callable[[], None]
) -> dict[str, Queries]:
    """Run the front of a model and keep what each of its output layers reads.

    Args:
        run: the front.
        names: the values that the layers read, [..., d] each.
        calls: inputs.
        told: called after each.

    Raises:
        DataError: a value holds NaN or infinity.
    """
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    rows: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    for number, (feeds, answers) in enumerate(_answers(run, calls)):
        for name in names:
            value = np.asarray(answers[name])
            queries = np.ascontiguousarray(value.reshape(-1, value.shape[-1]), np.float32)
            if not np.isfinite(queries).all():
                raise DataError(
                    f"calibration: the hidden activations {name!r} of call {number} hold NaN or "
                    "infinity; look at those inputs."
                )
            found[name].append(queries)
            rows[name].append(_rows(feeds, value, len(queries)) + (number << 32))
        told()
        if any(sum(map(len, found[name])) >= MOST_QUERIES for name in names):
            break
    return {name: Queries(found[name], np.concatenate(rows[name])) for name in names}


def load(path: Path) -> dict[str, NDArray[Any]]:
    """Read an ``.npz`` file, which may be anybody's.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as .npz ({error}); write it with numpy.savez(path, "
            "input_name=array)."
        ) from error


def _answers(
    run: Run, calls: Iterable[Feeds]
) -> Iterator[tuple[Feeds, Mapping[str, NDArray[Any]]]]:
    for feeds in calls:
        yield feeds, run(feeds)


def _rows(feeds: Feeds, value: NDArray[Any], queries: int) -> NDArray[np.int64]:
    """Return which row of the inputs each query belongs to; all to one where that is unclear."""
    lengths = {array.shape[0] for array in feeds.values() if array.ndim}
    first = value.shape[0] if value.ndim > 1 else 1
    if lengths == {first} and queries % max(first, 1) == 0:
        return np.repeat(np.arange(first, dtype=np.int64), queries // first)
    return np.zeros(queries, np.int64)
