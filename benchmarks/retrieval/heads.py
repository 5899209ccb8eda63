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

__all__ = ["SHAPES", "Head", "Shape", "best", "describe", "synthetic"]

_REVISION = 1  # of the recipe; part of the name of a cached file
_ARRAYS = ("weight", "bias", "calibration", "queries", "labels")
_CHUNK = 16_384  # labels or examples drawn at a time, from a stream of their own


@dataclass(frozen=True)
class Shape:
    """What a synthetic head is made of.

    Args:
        labels: N.
        depth: d, hidden activations.
        topics: groups of labels.
        super_topics: groups of topics.
        features: of the input.
        pool: features that the labels of a topic draw from.
        own: features of a label that no other is meant to have.
        shared: features of a label from its topic's pool.
        length: features of an example, with repetitions.
        signal: share of an example's features that come from the label's prototype.
        topical: share that come from the topic's pool; the rest come from anywhere.
        draws: examples that a label's mean is estimated from.
        popularity: exponent of the power law of the labels' frequency.
        seed: of everything.
    """

    labels: int
    depth: int = 128
    topics: int = 2_000
    super_topics: int = 60
    features: int = 60_000
    pool: int = 44
    own: int = 4
    shared: int = 9
    length: int = 19
    signal: float = 0.44
    topical: float = 0.5
    draws: int = 5
    popularity: float = 1.0
    seed: int = 0


SHAPES = {
    "w670": Shape(670_091),
    "w200": Shape(200_113),
    "w20": Shape(20_011, topics=200, super_topics=20, draws=3),
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
        _keep(_make(name, shape, queries), place)
    return Head(name, *(np.load(place / f"{array}.npy", mmap_mode="c") for array in _ARRAYS))


def _keep(head: Head, place: Path) -> None:
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
        above = random.integers(shape.features, size=(shape.super_topics, 4 * shape.pool))
        drawn = random.integers(4 * shape.pool, size=(shape.topics, shape.pool))
        alone = random.integers(shape.features, size=(shape.topics, shape.pool))
        # Half of a topic's pool is its super-topic's.
        mixed = random.random(alone.shape) < 0.5
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

    def examples(self, stream: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw labels by their frequency, and an example of each."""
        random = np.random.default_rng([self.shape.seed, stream])
        bounds = np.cumsum(self.frequency)
        labels = np.searchsorted(bounds, random.random(count) * bounds[-1])
        return self.hidden(labels, random), labels


def _make(name: str, shape: Shape, queries: int) -> Head:
    """Build a head from nothing."""
    world = _World(shape)
    parts = [
        np.arange(start, min(start + _CHUNK, shape.labels))
        for start in range(0, shape.labels, _CHUNK)
    ]

    def class_means(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the means of some labels' draws, and the sum of the draws' scatter about them."""
        random = np.random.default_rng([shape.seed, 1, int(labels[0])])
        mean = np.zeros((len(labels), shape.depth), np.float32)
        second = np.zeros((shape.depth, shape.depth))
        for _ in range(shape.draws):
            drawn = world.hidden(labels, random)
            mean += drawn
            second += drawn.T @ drawn
        mean /= shape.draws
        return mean, second - shape.draws * (mean.T @ mean)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        means, scatters = zip(*pool.map(class_means, parts), strict=True)
    within = sum(scatters) / (shape.labels * (shape.draws - 1))
    mean = np.concatenate(means)
    weight, bias = _discriminant(mean, within, shape.draws, world.frequency)
    calibration, _ = world.examples(2, queries)
    measured, labels = world.examples(3, queries)
    return Head(name, weight, bias, calibration, measured, labels)


def _discriminant(
    mean: np.ndarray, within: np.ndarray, draws: int, frequency: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of the linear discriminant of Gaussian classes.

    Means of few draws are noisy: they are shrunk to what is expected of them, and the doubt that
    remains is added to the scatter within (Ioffe, Probabilistic Linear Discriminant Analysis).
    """
    centre = mean.mean(axis=0, dtype=np.float64)
    total = np.cov(mean[:: max(1, len(mean) // 100_000)].T.astype(np.float64))
    between = total - within / draws
    shrink = np.linalg.solve(total, between)
    doubt = between - between @ shrink
    inverse = np.linalg.inv(within + doubt).astype(np.float32)
    mean = (mean - centre.astype(np.float32)) @ shrink.astype(np.float32)
    weight = mean @ inverse
    bias = np.log(frequency) - np.einsum("nd,nd->n", weight, centre.astype(np.float32) + 0.5 * mean)
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
