"""Output layers of networks with very many classes: structured synthetic ones, seeded.

    python -m retrieval.heads w670 [--folder FOLDER]    # from benchmarks/: build it and describe it

Random Gaussian rows would flatter nobody and teach nothing: every top k would be noise. Here labels
belong to topics and topics to super-topics. A label has a prototype, a few features of its own and
a few of its topic's pool. An example is a noisy draw from a label's prototype; an encoder, random
embeddings summed and rectified, turns it into a hidden vector, half of it zero. The layer is the
closed-form linear discriminant of those vectors, with the logarithm of the labels' frequency in
the bias (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, section 4.3).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.special import ndtr

__all__ = ["SHAPES", "Head", "Shape", "best", "describe", "keep", "kept", "synthetic", "truth"]

_REVISION = 2  # of the recipe; part of the name of a cached file
_ARRAYS = ("weight", "bias", "calibration", "queries", "labels")
_CHUNK = 16_384  # labels or examples drawn at a time, from a stream of their own
_SCATTER = 100_000  # examples that the scatter within labels is estimated from


@dataclass(frozen=True)
class Shape:
    """What a synthetic head is made of.

    Args:
        labels: N.
        depth: d, hidden activations.
        topics: groups of labels.
        super_topics: groups of topics.
        features: of the input.
        super_pool: features that the topics of a super-topic draw from.
        inherited: share of a topic's pool that comes from its super-topic's.
        pool: features that the labels of a topic draw from.
        own: features of a label that no other is meant to have.
        shared: features of a label from its topic's pool.
        length: features of an example, with repetitions.
        signal: share of an example's features that come from the label's prototype.
        topical: share that come from the topic's pool; the rest come from anywhere.
        ridge: added to the scatter within labels, as a share of its mean; keeps weights small, as
            weight decay does.
        popularity: exponent of the power law of the labels' frequency.
        seed: of everything.
    """

    labels: int
    depth: int = 128
    topics: int = 2_000
    super_topics: int = 60
    features: int = 60_000
    super_pool: int = 24
    inherited: float = 0.85
    pool: int = 20
    own: int = 4
    shared: int = 8
    length: int = 24
    signal: float = 0.22
    topical: float = 0.68
    ridge: float = 4.0
    popularity: float = 1.0
    seed: int = 0


SHAPES = {
    "w670": Shape(670_091),
    "w200": Shape(200_113),
    "w20": Shape(20_011, topics=200, super_topics=20),
}
"""The heads that have names: for the benchmark, and a small one for quick checks."""


@dataclass(frozen=True)
class Head:
    """An output layer and what comes in.

    Args:
        name: of the head.
        weight: float32 [N, d].
        bias: float32 [N].
        calibration: hidden vectors to build and to tune with, float32 [Q, d].
        queries: hidden vectors of other examples, to measure with, float32 [Q, d].
        labels: the label that each of ``queries`` was drawn from, int64 [Q].
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray
    calibration: np.ndarray
    queries: np.ndarray
    labels: np.ndarray


def synthetic(name: str, folder: str | Path | None = None, *, queries: int = 4_096) -> Head:
    """Return a named head, from the folder if it was kept there before.

    Args:
        name: one of :data:`SHAPES`.
        folder: where heads are kept between runs; ``None`` for ``qcompile-heads`` in the system's
            folder for temporary files.
        queries: how many vectors to calibrate with, and as many again to measure with.

    Raises:
        KeyError: there is no head of that name.
    """
    shape = SHAPES[name]
    root = Path(tempfile.gettempdir(), "qcompile-heads") if folder is None else Path(folder)
    place = root / f"{name}-{_REVISION}-{queries}"
    if not place.is_dir():
        keep(_make(name, shape, queries), place)
    return kept(name, place)


def kept(name: str, place: Path) -> Head:
    """Return the head that :func:`keep` wrote, its arrays mapped."""
    return Head(name, *(np.load(place / f"{array}.npy", mmap_mode="c") for array in _ARRAYS))


def keep(head: Head, place: Path) -> None:
    """Write every array, then give the folder its name: nobody sees half of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        whole = Path(folder) / "head"
        whole.mkdir()
        for array in _ARRAYS:
            np.save(whole / f"{array}.npy", getattr(head, array))
        if not place.is_dir():  # another process may have been faster
            whole.replace(place)


class _World:
    """Labels, topics, prototypes and the encoder."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        random = np.random.default_rng([shape.seed, shape.labels])
        of_topic = random.integers(shape.super_topics, size=shape.topics)
        above = random.integers(shape.features, size=(shape.super_topics, shape.super_pool))
        drawn = random.integers(shape.super_pool, size=(shape.topics, shape.pool))
        alone = random.integers(shape.features, size=(shape.topics, shape.pool))
        mixed = random.random(alone.shape) < shape.inherited
        self.pools = np.where(mixed, above[of_topic[:, None], drawn], alone).astype(np.int32)
        self.topic = random.integers(shape.topics, size=shape.labels)
        own = random.integers(shape.features, size=(shape.labels, shape.own), dtype=np.int32)
        places = random.integers(shape.pool, size=(shape.labels, shape.shared))
        shared = self.pools[self.topic[:, None], places]
        self.prototypes = np.concatenate([own, shared], axis=1)
        self.embedding = random.normal(size=(shape.features, shape.depth)).astype(np.float32)
        frequency = (random.permutation(shape.labels) + 10.0) ** -shape.popularity
        self.frequency = frequency / frequency.sum()

    def hidden(self, labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Draw one example a label and encode it: float32 [len(labels), d]."""
        shape, count = self.shape, len(labels)
        size = (count, shape.length)
        rows = np.arange(count)[:, None]
        given = self.prototypes[labels][rows, random.integers(shape.own + shape.shared, size=size)]
        pooled = self.pools[self.topic[labels]][rows, random.integers(shape.pool, size=size)]
        noise = random.integers(shape.features, size=size, dtype=np.int32)
        kind = random.random(size, dtype=np.float32)
        ids = np.where(
            kind < shape.signal, given, np.where(kind < shape.signal + shape.topical, pooled, noise)
        )
        values = np.full(ids.size, shape.length**-0.5, np.float32)
        starts = np.arange(count + 1) * shape.length
        bags = sparse.csr_array((values, ids.ravel(), starts), shape=(count, shape.features))
        return np.maximum(bags @ self.embedding, 0)

    def mean(self, labels: np.ndarray) -> np.ndarray:
        """Return what is expected of some labels' hidden vectors: float32 [len(labels), d].

        The sum of an example's embeddings is close to normal; this is the mean of a normal
        variable's positive part.
        """
        shape = self.shape
        share = (shape.signal, shape.topical, 1 - shape.signal - shape.topical)
        drawn = self.prototypes[labels], self.pools[self.topic[labels]]
        first, second = (
            share[0] * of[0] + share[1] * of[1] + share[2] * everywhere
            for of, everywhere in (
                ([_mean(table, ids) for ids in drawn], table.mean(axis=0))
                for table in (self.embedding, np.square(self.embedding))
            )
        )
        deviation = np.sqrt(second - np.square(first))
        place = shape.length**0.5 * first / deviation
        density = np.exp(-0.5 * np.square(place)) * (2 * np.pi) ** -0.5
        return (deviation * (place * ndtr(place) + density)).astype(np.float32)

    def examples(self, stream: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw labels by their frequency, and an example of each."""
        random = np.random.default_rng([self.shape.seed, stream])
        bounds = np.cumsum(self.frequency)
        labels = np.searchsorted(bounds, random.random(count) * bounds[-1])
        return self.hidden(labels, random), labels


def _mean(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the mean of the rows that each line of ids names."""
    count, width = ids.shape
    values = np.full(ids.size, 1 / width, np.float32)
    starts = np.arange(count + 1) * width
    return sparse.csr_array((values, ids.ravel(), starts), shape=(count, len(table))) @ table


def _make(name: str, shape: Shape, queries: int) -> Head:
    """Build a head from nothing."""
    world = _World(shape)
    starts = range(0, shape.labels, _CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(world.mean, (np.arange(shape.labels)[i : i + _CHUNK] for i in starts))
        mean = np.concatenate(list(parts))
    some, labels = world.examples(1, _SCATTER)
    residual = some - mean[labels]
    within = residual.T @ residual / _SCATTER
    within += shape.ridge * np.trace(within) / shape.depth * np.eye(shape.depth)
    weight, bias = _discriminant(mean, within, world.frequency)
    calibration, _ = world.examples(2, queries)
    measured, labels = world.examples(3, queries)
    return Head(name, weight, bias, calibration, measured, labels)


def _discriminant(
    mean: np.ndarray, within: np.ndarray, frequency: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of the linear discriminant of Gaussian classes.

    Weights are taken from their mean, which changes all scores of an example alike.
    """
    weight = mean @ np.linalg.inv(within)
    bias = np.log(frequency) - 0.5 * np.einsum("nd,nd->n", weight, mean)
    weight -= weight.mean(axis=0)
    return weight, (bias - bias.mean()).astype(np.float32)


def best(head: Head, k: int, queries: np.ndarray | None = None) -> np.ndarray:
    """Return the ids of the k largest scores in order, int64 [Q, k], from float32 products."""
    queries = head.queries if queries is None else queries
    found = []
    for some in np.array_split(queries, max(1, len(queries) // 64)):
        scores = some @ head.weight.T + head.bias
        ids = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, ids, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(ids, order, axis=1))
    return np.concatenate(found)


def truth(head: Head, k: int, count: int, file: Path) -> Path:
    """Write the ids of the k largest scores of the first queries, int64 [count, k], once.

    Products in float32 name candidates, float64 decides.
    """
    if not file.is_file():
        asked = np.asarray(head.queries[:count])
        candidates = np.sort(best(head, k + 16, asked), axis=1)  # of equal scores the smaller id
        rows = head.weight[candidates].astype(np.float64)
        scores = np.einsum("qcd,qd->qc", rows, asked) + head.bias[candidates]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.take_along_axis(candidates, order, axis=1))
        partial.replace(file)
    return file


def describe(name: str, head: Head, queries: int = 1_024) -> dict[str, float | int]:
    """Return the figures that say whether a synthetic head is like a trained one."""
    topic = _World(SHAPES[name]).topic
    first, labels = best(head, 1, head.queries[:queries])[:, 0], head.labels[:queries]
    some = head.weight[:: max(1, len(head.weight) // 20_000)]
    spectrum = np.linalg.svd(some - some.mean(axis=0), compute_uv=False)
    return {
        "classes": len(head.weight),
        "depth": head.weight.shape[1],
        "standard deviation of the bias": round(float(head.bias.std()), 2),
        "share of zeros in the queries": round(float((head.queries == 0).mean()), 3),
        "P@1": round(float((first == labels).mean()), 3),
        "right topic": round(float((topic[first] == topic[labels]).mean()), 3),
        "last singular value over the first": round(float(spectrum[-1] / spectrum[0]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("--folder", type=Path, help="where heads are kept between runs")
    options = parser.parse_args()
    start = time.perf_counter()
    head = synthetic(options.name, options.folder)
    figures = {"seconds": round(time.perf_counter() - start, 1), **describe(options.name, head)}
    print(json.dumps({"recipe": asdict(SHAPES[options.name]), **figures}, indent=2))


if __name__ == "__main__":
    main()
