"""Search of an output layer in learned cells, in NumPy: ground truth of ``_core.Cells``.

A cell's score is what its centroid scores in int8, plus the mean of its biases, plus a multiple of
its spread: the root of the squared spread of its weights times the hidden vector's norm, and of its
biases. The cells of the greatest scores are searched: their
rows are scored in int8, and the best of those in fp32. Where rows are codes, see
:mod:`qcompile.runtime.reference.codes`, their score is that of the cell plus those of the levels
and of the bias that the cell's score lacks.

Cells are looked for in groups, which lie one after the other. A group's score is what the mean of
its centroids scores in int8, plus what its biases add, plus its spread times the hidden vector's
norm. Only the centroids of the groups of the greatest scores are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qcompile import ops
from qcompile.runtime.reference import head
from qcompile.runtime.reference.codes import decode
from qcompile.runtime.reference.index import merge, pack, unpack

Arrays = Mapping[str, NDArray[Any]]


def cells_top_k(
    hidden: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    arrays: Arrays,
    k: int,
    *,
    probes: int = 32,
    groups: int = 16,
    rescore: int = 32,
    spread: float = 0.0,
    guard: float = 0.0,
    bits: int = 8,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k best scores found in the best cells, and their ids, [B, k].

    Args:
        hidden: float32 [B, d].
        weight: float32 [N, d].
        bias: float32 [N].
        arrays: of :func:`qcompile.runtime.index.build_cells`.
        k: how many.
        probes: cells that are searched; more where they hold fewer than k rows.
        groups: those that cells are looked for in; all where they hold too few, and with a guard.
        rescore: rows that are scored in fp32; k where that is more.
        spread: multiple of a cell's spread that counts for it.
        guard: where it is not 0, further cells are searched while the score of one, with this
            multiple of its spread, reaches the k-th best int8 score; of codes, the k-th best fp32
            score of the rows that would be scored so, which is looked up after 1, 2, 4, … of them.
        bits: 2 or 4 where rows are codes.
    """
    search = _Search(weight, bias, arrays, k, max(k, rescore), bits)
    scores = np.empty((len(hidden), k), np.float32)
    ids = np.empty((len(hidden), k), np.int64)
    for i, x in enumerate(hidden):
        found = search.find(x, probes, groups, np.float32(spread), np.float32(guard))
        rows = np.arange(len(weight)) if found is None or len(found.rows) < k else found.rows
        scores[i], best = head.linear_top_k(x, weight[rows], bias[rows], k)
        ids[i] = rows[best]
    return scores, ids


def cells_log_sum(
    hidden: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    arrays: Arrays,
    k: int,
    *,
    probes: int = 32,
    rescore: int = 32,
    spread: float = 0.0,
    guard: float = 0.0,
    variance: float = 1.0,
    bits: int = 8,
) -> NDArray[np.float64]:
    """Return the estimated logarithm of the partition function, [B, 1].

    Args are those of :func:`cells_top_k`, and

        variance: how much the spread of a cell that is not searched counts.
    """
    search = _Search(weight, bias, arrays, k, max(k, rescore), bits)
    every = np.arange(len(weight))
    results = np.empty((len(hidden), 1))
    for i, x in enumerate(hidden):
        found = search.find(x, probes, len(search.groups), np.float32(spread), np.float32(guard))
        if found is None or len(found.rows) < k:
            results[i] = _log_sum(head.linear_top_k(x, weight, bias, len(every))[0])
            continue
        final = head.linear_top_k(x, weight[found.rows], bias[found.rows], len(found.rows))[0]
        others = found.searched & ~np.isin(search.row_ids, found.rows)
        cells = np.setdiff1d(np.arange(len(found.cell_score)), search.cell_of[found.searched])
        rest = [_log_sum(bias[search.row_ids[search.cell_of == cell]]) for cell in cells]
        rest += found.cell_score[cells] - arrays["cell_bias"][cells].astype(np.float64)
        rest += 0.5 * variance * (_norm(x) * arrays["cell_spread"][cells].astype(np.float64)) ** 2
        results[i] = _log_sum(np.concatenate([final, found.row_score[others], rest]))
    return results


def _log_sum(values: NDArray[Any]) -> np.float64:
    if not len(values) or values.max() == -np.inf:
        return np.float64(-np.inf)
    most = np.float64(values.max())
    return most + np.log(np.exp(values.astype(np.float64) - most).sum())


class _Found(NamedTuple):
    rows: NDArray[np.int64]  # to be scored in fp32, ascending
    searched: NDArray[np.bool_]  # places whose cells were searched
    row_score: NDArray[np.float32]  # int8 scores of all places
    cell_score: NDArray[np.float32]


class _Search:
    def __init__(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        arrays: Arrays,
        k: int,
        most: int,
        bits: int,
    ) -> None:
        places, depth = len(arrays["row_ids"]), weight.shape[1]
        self.weight, self.bias = weight, bias
        self.k, self.most, self.coded = k, most, bits < 8
        self.arrays = arrays
        packed = arrays["packed"]
        self.rows = (
            decode(packed, places, depth, bits) if self.coded else unpack(packed, places, depth)
        )
        self.row_ids = arrays["row_ids"]
        lowest = np.finfo(np.float32).min
        row_bias = np.maximum(bias[self.row_ids], lowest)
        offsets = arrays["offsets"].astype(np.int64) * ops.BLOCK_ROWS
        rows_of = offsets[1:] - offsets[:-1]
        if self.coded:
            of_cell = np.repeat(arrays["cell_bias"], rows_of)
            row_bias = np.maximum(bias[self.row_ids] - of_cell, lowest)
        self.row_bias = np.where(self.row_ids < 0, -np.inf, row_bias).astype(np.float32)
        cells = len(arrays["centroid_scale"])
        self.centroids = unpack(arrays["centroids"], cells, depth)
        self.groups = unpack(arrays["group_centroids"], len(arrays["group_scale"]), depth)
        blocks = arrays["group_offsets"].astype(np.int64)
        self.group_of = np.repeat(
            np.arange(len(self.groups)), (blocks[1:] - blocks[:-1]) * ops.BLOCK_ROWS
        )
        self.group_of = self.group_of[:cells]
        cell_of = np.repeat(np.arange(cells), rows_of)
        self.cell_of = np.where(self.row_ids < 0, -1, cell_of)
        counted = (self.row_ids >= 0) & np.isfinite(bias[self.row_ids])
        of = cell_of[counted]
        apart = bias[self.row_ids][counted].astype(np.float64) - arrays["cell_bias"][of]
        squares = np.bincount(of, apart * apart, cells)  # one after the other
        counts = np.maximum(np.bincount(of, minlength=cells), 1)
        self.bias_spread = _as_float(np.sqrt(squares / counts))

    def find(
        self,
        x: NDArray[np.float32],
        probes: int,
        groups: int,
        spread: np.float32,
        guard: np.float32,
    ) -> _Found | None:
        """Search the best cells; ``None`` for a vector without a norm."""
        arrays = self.arrays
        norm = _norm(x)
        if not np.isfinite(norm):
            return None
        query = pack(x[None])
        values, scale = unpack(merge(query.packed), 1, len(x))[0], query.scale[0]
        cell_score = _scores(self.centroids, values, arrays["centroid_scale"] * scale)
        cell_score = cell_score + arrays["cell_bias"]
        weights = norm.astype(np.float64) * arrays["cell_spread"]
        biases = self.bias_spread.astype(np.float64)
        deviation = _as_float(np.sqrt(weights * weights + biases * biases))
        order = np.argsort(-(cell_score + spread * deviation), kind="stable")
        probes = min(probes, len(order))
        if guard == 0 and groups < len(self.groups):
            promise = _scores(self.groups, values, arrays["group_scale"] * scale)
            promise = promise + arrays["group_bias"]
            reach = promise + norm * arrays["group_spread"]
            best_groups = np.argsort(-reach, kind="stable")[:groups]
            among = order[np.isin(self.group_of[order], best_groups)][:probes]
            if np.isin(self.cell_of, among).sum() >= self.k:
                order, probes = among, len(among)
        while np.isin(self.cell_of, order[:probes]).sum() < self.k and probes < len(order):
            probes = min(2 * probes, len(order))
        row_score = _scores(self.rows, values, arrays["scale"] * scale) + self.row_bias
        if self.coded:
            row_score = row_score + cell_score[self.cell_of]
        searched = np.isin(self.cell_of, order[:probes])
        if guard > 0:
            bound = cell_score + guard * deviation
            rest = order[probes:]
            least = self._kth_best(x, searched, row_score)
            for number, cell in enumerate(rest[np.argsort(-bound[rest], kind="stable")], 1):
                if bound[cell] < least:
                    break
                searched |= self.cell_of == cell
                if not self.coded or number & (number - 1) == 0:
                    least = self._kth_best(x, searched, row_score)
        rows = self._best(searched, row_score)
        return _Found(rows, searched & (self.row_ids >= 0), row_score, cell_score)

    def _best(
        self, searched: NDArray[np.bool_], row_score: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Return the rows to be scored in fp32, ascending."""
        places = np.flatnonzero(searched)
        best = places[np.argsort(-row_score[places], kind="stable")][: self.most]
        return np.sort(self.row_ids[best]).astype(np.int64)

    def _kth_best(
        self, x: NDArray[np.float32], searched: NDArray[np.bool_], row_score: NDArray[np.float32]
    ) -> np.float32:
        if not self.coded:
            return np.float32(-np.sort(-row_score[searched])[self.k - 1])
        rows = self._best(searched, row_score)
        scores = head.linear_top_k(x, self.weight[rows], self.bias[rows], self.k)[0]
        return np.float32(scores[-1])


def _scores(
    rows: NDArray[np.signedinteger[Any]], values: NDArray[np.int8], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    return (rows.astype(np.int32) @ values.astype(np.int32)).astype(np.float32) * scale


def _as_float(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.minimum(values, np.finfo(np.float32).max).astype(np.float32)


def _norm(x: NDArray[np.float32]) -> np.float32:
    """The norm as index/query.h has it: summed in order in float64 and rounded up."""
    total = np.cumsum(np.square(x.astype(np.float64)))[-1]
    exact = np.sqrt(total) * (1 + (len(x) + 4) * 2.0**-52)
    nearest = np.float32(exact)
    return nearest if nearest >= exact else np.nextafter(nearest, np.float32(np.inf))
