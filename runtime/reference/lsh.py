"""NumPy reference of the hash tables and of the sampling of active neurons.

The C++ core (``runtime/csrc/lsh``, ``runtime/csrc/train``) gives the same results bit for bit.
Written for reading, not for speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = [
    "active_neurons",
    "build",
    "doph_codes",
    "draw",
    "draw_seed",
    "dwta_codes",
    "fold_bits",
    "keys",
    "permutation",
    "probed_rows",
    "random_bits",
    "simhash_codes",
    "top_set",
    "wta_codes",
]

BIN = 8
"""Coordinates of one bin of WTA, DWTA and DOPH, where there are as many."""

CODE_BITS = {"simhash": 1, "wta": 3, "dwta": 3, "doph": 3}
MAX_KEY_BITS = 20
MAX_TABLES = 1024

_PROBES = 64
_BORROW_STREAM = 1 << 32
_RESERVOIR_SEED = 0x7265736572766F69
_DRAW_SEED = 0x66756E6374696F6E
_SHARED_SEED = 0x7368617265642121
_ORDER_SEED = 0x726F746174696F6E
_MASK = (1 << 64) - 1


def mix_bits(x: int) -> int:
    """Return the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) of 64 bits."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def random_bits(seed: int, stream: int, index: int) -> int:
    """Return 64 random bits, a pure function of the arguments."""
    return mix_bits(mix_bits(mix_bits(seed) ^ stream) ^ index)


def below(bits: int, bound: int) -> int:
    """Return a number in [0, bound) from 64 random bits."""
    return ((bits >> 32) * bound) >> 32


def permutation(size: int, count: int, seed: int, stream: int) -> list[int]:
    """Return the first ``count`` of a random permutation of 0 … size - 1."""
    order = list(range(size))
    for i in range(count):
        other = i + below(random_bits(seed, stream, i), size - i)
        order[i], order[other] = order[other], order[i]
    return order[:count]


def simhash_codes(vectors: np.ndarray, functions: int, seed: int) -> np.ndarray:
    """Return SimHash codes, int [n, functions] of 0 and 1, of float32 vectors [n, d]."""
    dimension = vectors.shape[1]
    terms = -(-dimension // 3)
    codes = np.empty((len(vectors), functions), dtype=np.int64)
    for f in range(functions):
        chosen = permutation(dimension, terms, seed, 2 * f)
        added = [random_bits(seed, 2 * f + 1, i) >> 63 == 1 for i in range(terms)]
        total = np.zeros(len(vectors), dtype=np.float32)
        for coordinate, positive in zip(chosen, added, strict=True):
            if positive:
                total += vectors[:, coordinate]
        for coordinate, positive in zip(chosen, added, strict=True):
            if not positive:
                total -= vectors[:, coordinate]
        codes[:, f] = total > 0
    return codes


def independent_bins(dimension: int, count: int, seed: int) -> np.ndarray:
    """Return bins of coordinates, int [count, 8 or d], each from a permutation of its own."""
    width = min(BIN, dimension)
    return np.array([permutation(dimension, width, seed, f) for f in range(count)])


def consecutive_bins(dimension: int, count: int, seed: int) -> np.ndarray:
    """Return bins of coordinates, int [count, 8 or d], cut from whole permutations."""
    width = min(BIN, dimension)
    bins: list[list[int]] = []
    stream = 0
    while len(bins) < count:
        order = permutation(dimension, dimension, seed, stream)
        bins += [order[at : at + width] for at in range(0, dimension - width + 1, width)]
        stream += 1
    return np.array(bins[:count])


def wta_codes(vectors: np.ndarray, functions: int, seed: int) -> np.ndarray:
    """Return WTA codes, int [n, functions] below 8, of float32 vectors [n, d]."""
    bins = independent_bins(vectors.shape[1], functions, seed)
    return vectors[:, bins].argmax(axis=2).astype(np.int64)


def dwta_codes(vectors: np.ndarray, functions: int, seed: int) -> np.ndarray:
    """Return DWTA codes, int [n, functions] below 8, of float32 vectors [n, d]."""
    bins = vectors[:, consecutive_bins(vectors.shape[1], functions, seed)]
    codes = bins.argmax(axis=2).astype(np.int64)
    empty = (bins == 0).all(axis=2)
    for row, f in zip(*empty.nonzero(), strict=True):
        codes[row, f] = 0
        for probe in range(_PROBES):
            other = below(random_bits(seed, _BORROW_STREAM + int(f), probe), functions)
            if not empty[row, other]:
                codes[row, f] = codes[row, other]
                break
    return codes


def top_set(vectors: np.ndarray) -> np.ndarray:
    """Return which values, bool [n, d], are not zero and among the largest quarter of their row.

    Values that equal the last of these belong to them, too.
    """
    count = -(-vectors.shape[1] // 4)
    least = np.sort(vectors, axis=1)[:, -count, None]
    return (vectors >= least) & (vectors != 0)


def doph_codes(vectors: np.ndarray, functions: int, seed: int) -> np.ndarray:
    """Return DOPH codes, int [n, functions] below 8, of float32 vectors [n, d]."""
    return dwta_codes(top_set(vectors).astype(np.float32), functions, seed)


CODES = {"simhash": simhash_codes, "wta": wta_codes, "dwta": dwta_codes, "doph": doph_codes}
"""The hash families by name."""


def fold_bits(rows: int, family: str, hashes: int) -> int:
    """Return the bits of a key in tables over so many rows."""
    return min(hashes * CODE_BITS[family], rows.bit_length() + 1, MAX_KEY_BITS)


def keys(
    vectors: np.ndarray, rows: int, family: str, tables: int, hashes: int, seed: int
) -> np.ndarray:
    """Return the keys, int [tables, n], of float32 vectors [n, d]."""
    codes = CODES[family](vectors, tables * hashes, seed).reshape(len(vectors), tables, hashes)
    width = CODE_BITS[family]
    bits = fold_bits(rows, family, hashes)
    out = np.empty((tables, len(vectors)), dtype=np.int64)
    for row, table in np.ndindex(len(vectors), tables):
        key = 0
        for code in codes[row, table].tolist():
            key = key << width | code
        folded = hashes * width > bits
        out[table, row] = mix_bits(key) >> (64 - bits) if folded else key
    return out


def draw_seed(seed: int, number: int) -> int:
    """Return the seed of the hash functions that are drawn as number ``number``."""
    return seed if number == 0 else random_bits(seed ^ _DRAW_SEED, number, 0)


def build(
    row_keys: np.ndarray, bucket: int, policy: str, seed: int, generation: int
) -> list[dict[int, list[int]]]:
    """Return the buckets of each table, as key → rows, from keys [tables, rows]."""
    tables: list[dict[int, list[int]]] = []
    for table, own in enumerate(row_keys.tolist()):
        buckets: dict[int, list[int]] = {}
        seen: dict[int, int] = {}
        for row, key in enumerate(own):
            kept = buckets.setdefault(key, [])
            before = seen.get(key, 0)
            seen[key] = before + 1
            if before < bucket:
                kept.append(row)
                continue
            stream = generation * MAX_TABLES + table
            random = random_bits(seed ^ _RESERVOIR_SEED, stream, row)
            place = before % bucket if policy == "fifo" else below(random, before + 1)
            if place < bucket:
                kept[place] = row
        tables.append(buckets)
    return tables


def draw(count: int, bound: int, seed: int, step: int) -> list[int]:
    """Return the neurons that a batch shares: ``count`` distinct ones below ``bound``."""
    taken: set[int] = set()
    for last in range(bound - count, bound):
        pick = below(random_bits(seed ^ _SHARED_SEED, step, last), last + 1)
        taken.add(last if pick in taken else pick)
    return sorted(taken)


def probed_rows(
    tables: list[dict[int, list[int]]],
    query_keys: Sequence[int],
    seed: int,
    step: int,
    example: int,
) -> Iterator[int]:
    """Yield the entries of the buckets that one example collides with, in the order of probing.

    Tables come in a random order, the rows of a bucket from a random place on.
    """
    bits = random_bits(seed ^ _ORDER_SEED, step, example)
    for i, table in enumerate(permutation(len(tables), len(tables), bits, 0)):
        bucket = tables[table].get(query_keys[table], [])
        if bucket:
            first = below(random_bits(bits, 1, i), len(bucket))
            yield from bucket[first:] + bucket[:first]


def active_neurons(
    tables: list[dict[int, list[int]]],
    query_keys: Sequence[int],
    labels: Sequence[int],
    active: int,
    seed: int,
    step: int,
    example: int,
    sampling: str = "top-k",
    threshold: int = 2,
) -> list[int]:
    """Return the neurons that one example has of its own: its labels, then its LSH candidates."""
    own = list(dict.fromkeys(labels))
    room = max(active - len(own), 0)
    needed = {"top-k": 0, "vanilla": 1, "threshold": threshold}[sampling]
    counts: dict[int, int] = {}
    reached: list[int] = []
    for row in probed_rows(tables, query_keys, seed, step, example):
        if row in own:
            continue
        counts[row] = counts.get(row, 0) + 1
        if counts[row] == needed:
            reached.append(row)
    if sampling != "top-k":
        return own + reached[:room]
    # Dictionaries keep the order of first collision, and sorting keeps it among equals.
    best = sorted(counts, key=lambda row: -counts[row])[:room]
    return own + [row for row in counts if row in set(best)]
