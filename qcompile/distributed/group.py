"""The ranks of a run, the collectives that they call, and the bytes that these send.

Only what gloo does at its optimum is used: all-gather, ring all-reduce and all-to-all. gloo's
reduce-scatter is an all-reduce in disguise, twice the bytes; :meth:`Group.sum_rows` sends the parts
to their owners instead, which add them up in the order of ranks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qcompile.errors import DistributedError

__all__ = ["Group"]

_PREFIX = "qcompile/"
_FAILURE = "failure"


class Group:
    """A process group, or one lonely process where none has been initialised.

    Every method is a collective: all ranks must call it, in the same order. Results have the same
    bits on every rank and from run to run with the same number of ranks.

    Args:
        process_group: of torch.distributed; ``None`` is the default group.

    Attributes:
        rank: of this process.
        size: number of ranks.
        flag: set it to tell all ranks something without a collective of its own: it travels with
            every :meth:`table`.
        flagged: whether a rank had its flag set at a table; the same on all ranks.
        seconds: that this rank has spent in collectives, waiting for others included.
        sent: payload bytes that this rank has sent, by kind of collective. An all-gather of n bytes
            sends n to each other rank, a ring all-reduce 2·n·(size − 1)/size in all, an all-to-all
            what the others get. Headers of gloo and TCP come on top.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        started = dist.is_initialized()
        self._group = process_group
        self.rank = dist.get_rank(process_group) if started else 0
        self.size = dist.get_world_size(process_group) if started else 1
        self.flag = self.flagged = False
        self.seconds = 0.0
        self.sent: Counter[str] = Counter()

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that this rank has sent so far."""
        return self.sent.total()

    def table(self, *values: int) -> list[list[int]]:
        """Tell all ranks a few whole numbers (and the flag); returns them by rank."""
        mine = torch.tensor([*values, int(self.flag)], dtype=torch.int64)
        rows: list[list[int]] = self.gather(mine[None], [1] * self.size).tolist()
        self.flagged = self.flagged or any(row[-1] for row in rows)
        return [row[:-1] for row in rows]

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Put the rows of all ranks together, by rank.

        Args:
            rows: [counts[rank], ...]; the other axes are alike everywhere.
            counts: rows of each rank.

        Returns:
            [sum(counts), ...].
        """
        if self.size == 1:
            return rows
        most = max(counts)
        mine = rows.contiguous()
        if len(mine) < most:
            mine = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
        everything = mine.new_empty(self.size * most, *mine.shape[1:])
        self._call("all-gather", dist.all_gather_single, everything, mine)
        self.sent["all-gather"] += (self.size - 1) * _bytes(mine)
        if min(counts) == most:
            return everything
        parts = everything.view(self.size, most, *mine.shape[1:])
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its sum over all ranks."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its elementwise maximum over all ranks."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def sum_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Add up over ranks, and leave to each rank its own rows (a reduce-scatter).

        Args:
            rows: [sum(counts), ...], by the rank that they belong to.
            counts: rows of each rank.

        Returns:
            [counts[rank], ...].
        """
        if self.size == 1:
            return rows
        own = counts[self.rank]
        parts = self.exchange(rows, counts, [own] * self.size)
        return parts.view(self.size, own, *rows.shape[1:]).sum(0)

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Send ``send[s]`` rows to each rank s, in this order; get ``receive[s]`` from it."""
        if self.size == 1:
            return rows
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        rows = rows.contiguous()
        self._call("all-to-all", dist.all_to_all_single, received, rows, list(receive), list(send))
        others = sum(send) - send[self.rank]
        self.sent["all-to-all"] += others * rows.shape[1:].numel() * rows.element_size()
        return received

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.table(0)

    def post(self, notice: str, text: str = "") -> None:
        """Leave a notice for the other ranks (no collective)."""
        if self.size > 1:
            dist.distributed_c10d._get_default_store().set(_PREFIX + notice, text)

    def posted(self, notice: str) -> bool:
        """Whether some rank has left this notice (no collective).

        Raises:
            DistributedError: a rank has failed, or the one that keeps the notices is gone.
        """
        reason = self._failure()
        if reason:
            raise DistributedError(f"rank {self.rank} of {self.size} stops. {reason}")
        return self._read(notice) is not None

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks why this one ends (no collective)."""
        # The first failure is the cause of the others.
        if not isinstance(error, DistributedError):
            with suppress(RuntimeError):  # the store went with the rank that kept it
                self.post(_FAILURE, f"rank {self.rank}: {type(error).__name__}: {error}")

    def _reduce(self, tensor: Tensor, operation: Any) -> Tensor:
        if self.size > 1:
            self._call("all-reduce", dist.all_reduce, tensor, operation)
            self.sent["all-reduce"] += 2 * _bytes(tensor) * (self.size - 1) // self.size
        return tensor

    def _call(self, name: str, collective: Callable[..., Any], *args: Any) -> None:
        began = time.perf_counter()
        try:
            collective(*args, group=self._group)
        except (RuntimeError, ValueError) as error:
            cause = self._failure() or "See its messages."
            raise DistributedError(
                f"rank {self.rank} of {self.size}: {name} failed, because another rank ended, hung "
                f"or could not be reached. {cause} Start all ranks again, from the last "
                f"checkpoint. ({str(error).splitlines()[0]})"
            ) from error
        self.seconds += time.perf_counter() - began

    def _failure(self) -> str:
        """Return why a rank has ended, or nothing."""
        try:
            text = self._read(_FAILURE)
        except RuntimeError:
            return "The rank that started the run is gone; see its messages."
        return "" if text is None else f"The first error was on {text}"

    def _read(self, notice: str) -> str | None:
        store = dist.distributed_c10d._get_default_store()
        key = _PREFIX + notice
        return store.get(key).decode() if store.check([key]) else None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
