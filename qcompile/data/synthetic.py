"""Random extreme classification problems of any size, with structure that can be learned."""

from __future__ import annotations

import numpy as np
from scipy import sparse

__all__ = ["AMAZON_670K", "extreme_classification"]

AMAZON_670K = {"features": 135_909, "labels": 670_091}
"""The shape of Amazon-670K, for :func:`extreme_classification`."""

_LABELS_PER_TOPIC = 335
_POOL = 200  # features that the labels of one topic draw from
_PROTOTYPE = 16  # features of one label


def extreme_classification(
    rows: int,
    *,
    features: int,
    labels: int,
    nonzeros: float = 75,
    labels_per_row: float = 5,
    popularity: float = 1.3,
    signal: float = 0.7,
    seed: int = 0,
    stream: int = 0,
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Draw rows of a problem like those of the extreme classification repository.

    Labels belong to topics. A label has a prototype of 16 features, half of them from a pool that
    its topic's labels share. A row has a leading label, drawn by a power law, and others of the
    same topic; its features come from the prototypes of its labels or, as noise, from all
    features by a power law. Values are log-normal and rows have length 1.

    Args:
        rows: n.
        features: F.
        labels: N.
        nonzeros: mean number of features of a row, before repetitions are merged.
        labels_per_row: mean number of labels of a row, at least 1, before they are merged.
        popularity: exponent of the power law of labels: label i is drawn with (i + 10)^-popularity.
        signal: share of the features that come from prototypes.
        seed: of the problem: prototypes and topics.
        stream: of the rows; different streams of one seed are samples of one problem.

    Returns:
        features, float32 CSR [n, F], and labels, float32 ones in CSR [n, N]; both sorted.
    """
    problem = np.random.default_rng([seed, features, labels])
    topics = max(1, labels // _LABELS_PER_TOPIC)
    topic_of = problem.integers(topics, size=labels)
    pools = problem.integers(features, size=(topics, _POOL))
    own = problem.integers(features, size=(labels, _PROTOTYPE // 2))
    shared = problem.integers(_POOL, size=(labels, _PROTOTYPE - _PROTOTYPE // 2))
    prototypes = np.concatenate([own, pools[topic_of[:, None], shared]], axis=1)
    order = problem.permutation(labels)  # ids say nothing about popularity

    random = np.random.default_rng([seed, stream, 1])
    leading = order[_power_law(random, labels, popularity, rows)]
    others = random.poisson(labels_per_row - 1, size=rows)
    companions = _companions(random, leading, others, topic_of, order)
    row_of = np.concatenate([np.arange(rows), np.repeat(np.arange(rows), others)])
    assigned = np.concatenate([leading, companions])
    right = _ones(row_of, assigned, (rows, labels))

    counts = np.maximum(1, random.poisson(nonzeros, size=rows))
    where = np.repeat(np.arange(rows), counts)
    offset = (random.random(len(where)) * np.diff(right.indptr)[where]).astype(np.int64)
    label = right.indices[right.indptr[where] + offset]
    columns = prototypes[label, random.integers(_PROTOTYPE, size=len(where))]
    noise = random.random(len(where)) >= signal
    columns[noise] = _power_law(random, features, 1.0, int(noise.sum()))
    values = random.lognormal(sigma=0.5, size=len(where)).astype(np.float32)
    given = sparse.csr_array((values, (where, columns)), shape=(rows, features))
    given.sum_duplicates()
    length = np.sqrt(np.asarray(given.multiply(given).sum(axis=1))).ravel()
    given.data /= np.repeat(length, np.diff(given.indptr)).astype(np.float32)
    return given, right


def _power_law(random: np.random.Generator, size: int, exponent: float, count: int) -> np.ndarray:
    """Draw numbers below ``size``, i with a probability proportional to (i + 10)^-exponent."""
    weight = np.cumsum((np.arange(size) + 10.0) ** -exponent)
    return np.searchsorted(weight, random.random(count) * weight[-1]).astype(np.int64)


def _companions(
    random: np.random.Generator,
    leading: np.ndarray,
    counts: np.ndarray,
    topic_of: np.ndarray,
    order: np.ndarray,
) -> np.ndarray:
    """Draw labels of the leading labels' topics, the popular ones of a topic more often."""
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    by_topic = np.lexsort((rank, topic_of))
    starts = np.searchsorted(topic_of[by_topic], np.arange(topic_of.max() + 2))
    topic = np.repeat(topic_of[leading], counts)
    size = starts[topic + 1] - starts[topic]
    # The logarithm of a place is uniform: place k is drawn with a probability near 1/k.
    place = np.floor(size ** random.random(len(topic))).astype(np.int64) - 1
    return by_topic[starts[topic] + np.clip(place, 0, size - 1)]


def _ones(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    matrix = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
