"""Where batches come from: rows in a computed order, made ready by another thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.errors import DataError
from qcompile.training.order import Permutation

__all__ = ["Batches", "moments"]

_AHEAD = 3  # batches made ready before they are asked for
_STRETCH = 1 << 22  # values at a time, of data that may be mapped from disk


class Batches:
    """The batches of a dataset, epoch by epoch.

    Rows without labels, which teach nothing, are skipped. The last batch of an epoch may be
    smaller. Of several ranks each gets its own, contiguous part of every batch.

    Args:
        dataset: the examples.
        size: examples of a batch, of all ranks together.
        seed: chooses the order of each epoch.
        rank: of this process.
        ranks: number of processes.

    Raises:
        DataError: no row has a label, or a batch is smaller than the number of ranks.
    """

    def __init__(
        self, dataset: SparseDataset, size: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self._dataset, self._size, self._seed = dataset, size, seed
        self._rank, self._ranks = rank, ranks
        self._rows = dataset.labelled_rows
        if not len(self._rows):
            raise DataError(
                f"training data: none of {len(dataset)} rows has a label, so there is nothing to "
                "learn; check the labels' file."
            )
        last = len(self._rows) % size or min(size, len(self._rows))
        if last < ranks:
            raise DataError(
                f"training data: the last batch of an epoch holds {last} examples, fewer than the "
                f"{ranks} ranks; choose another batch size than {size}."
            )

    @property
    def examples(self) -> int:
        """Examples of an epoch."""
        return len(self._rows)

    @property
    def skipped(self) -> int:
        """Rows without labels."""
        return len(self._dataset) - len(self._rows)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._rows) // self._size)

    def epoch(self, number: int, begin: int = 0) -> Iterator[tuple[sparse.csr_matrix, Tensor]]:
        """Yield features CSR [B, F] and labels int64 [B, T] of the batches from ``begin`` on."""
        order = Permutation(len(self._rows), self._seed, number)
        with ThreadPoolExecutor(1, thread_name_prefix="qcompile-batches") as pool:
            ready: deque[Future[tuple[sparse.csr_matrix, Tensor]]] = deque()
            try:
                for index in range(begin, self.per_epoch):
                    ready.append(pool.submit(self._make, order, index))
                    if len(ready) > _AHEAD:
                        yield ready.popleft().result()
                while ready:
                    yield ready.popleft().result()
            finally:
                for future in ready:
                    future.cancel()

    def _make(self, order: Permutation, index: int) -> tuple[sparse.csr_matrix, Tensor]:
        begin = index * self._size
        count = min(self._size, len(self._rows) - begin)
        low, high = (count * part // self._ranks for part in (self._rank, self._rank + 1))
        batch = self._dataset.batch(self._rows[order(begin + low, begin + high)])
        return batch.features, torch.from_numpy(batch.labels)


def moments(dataset: SparseDataset) -> tuple[float, float]:
    """Return the means over examples of Σx² and Σx⁴."""
    square = fourth = 0.0
    values = dataset.features.data
    for begin in range(0, len(values), _STRETCH):
        squares = np.square(values[begin : begin + _STRETCH].astype(np.float64))
        square += float(squares.sum())
        fourth += float(np.square(squares).sum())
    rows = max(1, int(np.count_nonzero(np.diff(dataset.features.indptr))))
    return square / rows, fourth / rows
