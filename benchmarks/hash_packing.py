"""Which candidates do hash families find, and keys of three bits a code or of two?

The public code of SLIDE (MLSys 2020) gives a code of 0 to 7 only two bits of the key, since it
takes a logarithm to the wrong base, so neighbouring codes add up in a shared bit. A network is
trained on a random extreme classification problem; then candidates are looked up for examples that
it has not seen, in buckets of any size, and compared with the scores of all neurons. P@1 is of the
best-scored candidate.

    python benchmarks/hash_packing.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recording import record
from rich.console import Console
from rich.table import Table
from scipy import sparse

import qcompile
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.data.synthetic import extreme_classification
from qcompile.nn import LSHLinear, SparseLinear
from qcompile.optim import Adam
from qcompile.runtime import _core

DEPTH, TABLES, BATCH, ACTIVE = 128, 50, 128, 128
MOST = 14  # hashes of a table
KEYS = (
    # family, name of the packing, bits that a code moves the key, bits of a code, hashes
    ("dwta", "3 bits", 3, 7, (4, 5, 6)),
    ("dwta", "2 bits, overlapping", 2, 7, (5, 6, 8)),  # as in the public code
    ("dwta", "2 low bits", 2, 3, (6, 7, 8)),
    ("wta", "3 bits", 3, 7, (4, 5)),
    ("doph", "3 bits", 3, 7, (4, 5)),
    ("simhash", "1 bit", 1, 1, (10, 12, 14)),
)


@dataclass(frozen=True)
class Packing:
    """What one way to make keys finds."""

    family: str
    packing: str
    hashes: int
    bits: int
    candidates: float  # neurons that collide at all, a query
    best_found: float  # queries whose best-scored neuron is among them
    best_in_active: float  # and among the 128 that collide most often
    p1_of_candidates: float
    p1_of_active: float
    p1_of_all: float


def train(problem: SparseDataset, epochs: int) -> tuple[SparseLinear, LSHLinear]:
    """Train one hidden layer of 128 under a sampled softmax."""
    torch.manual_seed(0)
    first = SparseLinear(problem.num_features, DEPTH)
    output = LSHLinear(DEPTH, problem.num_labels, config=qcompile.LSH(negatives=2048))
    optimizer = Adam([*first.parameters(), *output.parameters()], lr=2e-3)
    rng = np.random.default_rng(0)
    for epoch in range(epochs):
        losses = []
        for rows in np.array_split(rng.permutation(len(problem)), len(problem) // BATCH):
            batch = problem.batch(rows)
            optimizer.zero_grad()
            loss = output(first(batch.features).relu(), torch.as_tensor(batch.labels)).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        Console(stderr=True).print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}")
    return first.eval(), output.eval()


def pack(codes: np.ndarray, hashes: int, shift: int, mask: int) -> np.ndarray:
    """Return keys [L, n] of codes [L · K', n], the first K of each table's K'."""
    keys = np.zeros((TABLES, codes.shape[1]), np.int64)
    for h in range(hashes):
        keys = (keys << shift) + (codes[h :: len(codes) // TABLES] & mask)
    return keys


def look_up(keys: np.ndarray, queries: np.ndarray) -> list[np.ndarray]:
    """Return for each query how often it collides with each neuron."""
    counts = [np.zeros(keys.shape[1], np.uint8) for _ in range(queries.shape[1])]
    for own, asked in zip(keys, queries, strict=True):
        order = np.argsort(own, kind="stable")
        low = np.searchsorted(own[order], asked, "left")
        high = np.searchsorted(own[order], asked, "right")
        for count, begin, end in zip(counts, low, high, strict=True):
            count[order[begin:end]] += 1
    return counts


def most_frequent(count: np.ndarray) -> np.ndarray:
    """Return the neurons with the most collisions, those of more first."""
    seen = np.flatnonzero(count)
    return seen[np.argsort(-count[seen].astype(int), kind="stable")][:ACTIVE]


@dataclass(frozen=True)
class Asked:
    """Queries: scores of all neurons, and labels."""

    scores: np.ndarray
    truth: sparse.csr_array

    def judge(self, of_rows: np.ndarray, of_queries: np.ndarray) -> tuple[float, ...]:
        """Return the figures of :class:`Packing` for keys [L, N] and [L, queries]."""
        counts = look_up(of_rows, of_queries)
        candidates = [np.flatnonzero(count) for count in counts]
        active = [most_frequent(count) for count in counts]
        everything = [np.arange(of_rows.shape[1])] * len(counts)
        return (
            float(np.mean([len(ids) for ids in candidates])),
            self.found(candidates),
            self.found(active),
            self.precision(candidates),
            self.precision(active),
            self.precision(everything),
        )

    def precision(self, lists: list[np.ndarray]) -> float:
        """Return P@1 of the best-scored neuron of each list."""
        picked = [ids[s[ids].argmax()] if len(ids) else 0 for ids, s in self._pairs(lists)]
        return float(np.mean([self.truth[[e], [p]].item() > 0 for e, p in enumerate(picked)]))

    def found(self, lists: list[np.ndarray]) -> float:
        """Return the share of queries whose best-scored neuron is in the list."""
        return float(np.mean([s.argmax() in ids for ids, s in self._pairs(lists)]))

    def _pairs(self, lists: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return zip(lists, self.scores, strict=True)


def compare(asked: Asked, weight: np.ndarray, hidden: np.ndarray) -> list[Packing]:
    """Look candidates up with each packing."""
    found = []
    for family, name, shift, mask, depths in KEYS:
        core = _core.LshTables(DEPTH, 2**19, family, TABLES * MOST, 1, 1, "fifo", 0)
        of_rows, of_queries = core.keys(weight), core.keys(hidden)
        for hashes in depths:
            packed = [pack(codes, hashes, shift, mask) for codes in (of_rows, of_queries)]
            found.append(
                Packing(family, name, hashes, bits_of(hashes, shift, mask), *asked.judge(*packed))
            )
    return found


def bits_of(hashes: int, shift: int, mask: int) -> int:
    """Return the bits of the largest key."""
    codes = np.full((TABLES * MOST, 1), mask)
    return int(pack(codes, hashes, shift, mask)[0, 0]).bit_length()


def measure(epochs: int, labels: int, rows: int, queries: int) -> list[Packing]:
    """Train, look up and compare."""
    shape = {"features": labels // 5, "labels": labels}
    first, output = train(SparseDataset(*extreme_classification(rows, **shape)), epochs)
    unseen, truth = extreme_classification(queries, stream=1, **shape)
    with torch.no_grad():
        hidden = first(unseen).relu()
        scores = hidden @ output.weight.T + output.bias
        weight = output.weight.numpy()
    return compare(Asked(scores.numpy(), truth), weight, hidden.numpy())


def draw(rows: list[Packing]) -> Table:
    """Lay the rows out for a terminal."""
    table = Table(title=f"{TABLES} tables; P@1 of all neurons {rows[0].p1_of_all:.3f}")
    heads = (
        "family",
        "packing",
        "K",
        "bits",
        "candidates",
        "best found",
        "P@1",
        "best in 128",
        "P@1 of 128",
    )
    for head in heads:
        table.add_column(head, justify="left" if head in heads[:2] else "right")
    for row in rows:
        table.add_row(
            row.family,
            row.packing,
            str(row.hashes),
            str(row.bits),
            f"{row.candidates:,.0f}",
            f"{row.best_found:.3f}",
            f"{row.p1_of_candidates:.3f}",
            f"{row.best_in_active:.3f}",
            f"{row.p1_of_active:.3f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller problem")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows = measure(4, 10_000, 3_000, 200) if options.quick else measure(10, 67_009, 20_000, 1000)
    Console(width=120 if not sys.stdout.isatty() else None).print(draw(rows))
    return record(options.json, ("torch", "numpy"), rows, [])


if __name__ == "__main__":
    sys.exit(main())
