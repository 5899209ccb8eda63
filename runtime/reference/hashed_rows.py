"""Search of an output layer in hash tables, in NumPy: ground truth of ``_core.Hashed``.

In each table the hidden vector's own bucket is read, then those that exchanging its least certain
codes leads to. Rows are ranked by how many buckets had them, and the best scored in fp32.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.runtime.reference import head, lsh

Arrays = Mapping[str, NDArray[Any]]


def hashed_top_k(
    hidden: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    arrays: Arrays,
    k: int,
    *,
    family: str,
    tables: int,
    hashes: int,
    seed: int,
    probes: int = 1,
    rescore: int = 32,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k best scores of the rows that collide most often, and their ids, [B, k].

    Args:
        hidden: float32 [B, d].
        weight: float32 [N, d].
        bias: float32 [N].
        arrays: of :func:`qcompile.runtime.index.build_lsh`.
        k: how many.
        family: of the hash functions.
        tables: L.
        hashes: K.
        seed: of the hash functions, signed or not.
        probes: buckets of each table that are read.
        rescore: rows that are scored; k where that is more. Where fewer than k collide, all are.
    """
    scores = np.empty((len(hidden), k), np.float32)
    ids = np.empty((len(hidden), k), np.int64)
    bits = lsh.fold_bits(len(weight), family, hashes)
    width = lsh.CODE_BITS[family]
    for i, x in enumerate(hidden):
        rows = np.arange(len(weight))
        if np.isfinite(x).all():
            ranked = ranked_codes(x, family, tables * hashes, seed % 2**64)
            codes, seconds, leads = (part.reshape(tables, hashes) for part in ranked)
            keys = [
                _keys(codes[t], seconds[t], leads[t], probes, width, bits) for t in range(tables)
            ]
            counts: dict[int, int] = {}
            for probe in range(probes):
                for table, own in enumerate(keys):
                    key = own[probe] if probe < len(own) else None
                    if key is not None:
                        at = (table << bits) + key
                        begin, end = arrays["offsets"][at : at + 2].tolist()
                        for row in arrays["row_ids"][begin:end].tolist():
                            counts[row] = counts.get(row, 0) + 1
            best = sorted(counts, key=lambda row: -counts[row])[: max(k, rescore)]
            if len(best) >= k:
                rows = np.sort(np.array(best))
        scores[i], place = head.linear_top_k(x, weight[rows], bias[rows], k)
        ids[i] = rows[place]
    return scores, ids


def ranked_codes(
    x: NDArray[np.float32], family: str, functions: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the codes of one vector [d], those that come second, and the leads of the first."""
    if family == "simhash":
        sums = _signed_sums(x, functions, seed)
        codes = (sums > 0).astype(np.int64)
        return codes, 1 - codes, np.abs(sums)
    if family == "doph":
        x = lsh.top_set(x[None])[0].astype(np.float32)
    make = lsh.independent_bins if family == "wta" else lsh.consecutive_bins
    bins = make(len(x), functions, seed)
    if bins.shape[1] < lsh.BIN:  # the first coordinate again
        bins = np.hstack([bins, np.repeat(bins[:, :1], lsh.BIN - bins.shape[1], axis=1)])
    values = x[bins]
    order = np.argsort(-values, axis=1, kind="stable")[:, :2]
    first, second = np.take_along_axis(values, order, axis=1).T
    codes, seconds, leads = order[:, 0], order[:, 1], first - second
    if family == "wta":
        return codes, seconds, leads
    empty = (values == 0).all(axis=1)
    lenders = np.arange(functions)
    for f in empty.nonzero()[0]:
        for probe in range(64):
            other = lsh.below(lsh.random_bits(seed, (1 << 32) + int(f), probe), functions)
            if not empty[other]:
                lenders[f] = other
                break
    return codes[lenders], seconds[lenders], leads[lenders]


def _signed_sums(x: NDArray[np.float32], functions: int, seed: int) -> NDArray[np.float32]:
    terms = -(-len(x) // 3)
    sums = np.zeros(functions, np.float32)
    for f in range(functions):
        chosen = lsh.permutation(len(x), terms, seed, 2 * f)
        added = [lsh.random_bits(seed, 2 * f + 1, i) >> 63 == 1 for i in range(terms)]
        for sign in (True, False):
            for coordinate, positive in zip(chosen, added, strict=True):
                if positive == sign:
                    sums[f] += x[coordinate] if sign else -x[coordinate]
    return sums


def _keys(
    codes: NDArray[np.int64],
    seconds: NDArray[np.int64],
    leads: NDArray[np.float32],
    probes: int,
    width: int,
    bits: int,
) -> list[int | None]:
    """Return the keys of one table in the order of probing; None for one that came before."""
    found: list[int | None] = []
    for _, exchanged in zip(range(probes), _sets(leads), strict=False):
        packed = 0
        for h in range(len(codes)):
            packed = packed << width | int(seconds[h] if h in exchanged else codes[h])
        folded = len(codes) * width > bits
        key = lsh.mix_bits(packed) >> (64 - bits) if folded else packed
        found.append(None if key in found else key)
    return found


def _sets(leads: NDArray[np.float32]) -> Iterator[set[int]]:
    """Yield sets of codes to exchange, by the sum of the squares of their leads."""
    yield set()
    order = np.argsort(leads, kind="stable").tolist()
    costs = [float(leads[h]) ** 2 for h in order]

    def entry(members: tuple[int, ...]) -> tuple[float, int, tuple[int, ...]]:
        total = 0.0
        for i in members:
            total += costs[i]
        return total, sum(1 << i for i in members), members

    heap = [entry((0,))]
    while heap:
        _, _, members = heapq.heappop(heap)
        yield {order[i] for i in members}
        following = members[-1] + 1
        if following < len(order):
            heapq.heappush(heap, entry((*members[:-1], following)))
            heapq.heappush(heap, entry((*members, following)))
