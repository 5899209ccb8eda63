"""Joining the other ranks of a run, agreeing with them, and leaving them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from qcompile.distributed.group import Group
from qcompile.errors import DistributedError

__all__ = ["after_first", "agree", "launched", "ranks"]

_T = TypeVar("_T")
_POLL = 0.02  # seconds


def launched() -> bool:
    """Whether torchrun, or something that sets the same variables, has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def ranks(timeout: float = 600.0) -> Iterator[Group]:
    """Join the ranks that torchrun has started; a process started without it is alone.

    An error that leaves the block is told to the other ranks. They wait for this one in a
    collective, which breaks as soon as this process ends, and name the error in theirs. A rank that
    hangs without ending costs the others ``timeout``. Ranks leave the block together.

    Args:
        timeout: seconds that a rank waits for the others, at the start and in each collective.

    Raises:
        DistributedError: the other ranks do not come.
    """
    if not launched():
        yield Group()
        return
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} found no connection to the "
            f"others within {timeout:g} s at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')}; start all ranks with torchrun, and see that this "
            f"address can be reached from every machine. ({str(error).splitlines()[0]})"
        ) from error
    group = Group()
    try:
        yield group
        _wait_for_others(group, timeout)
    except BaseException as error:
        group.fail(error)
        raise
    finally:
        dist.destroy_process_group()


def _wait_for_others(group: Group, timeout: float) -> None:
    """Keep the connections until no rank needs them: a collective ends on some ranks earlier."""
    group.post(f"done/{group.rank}")
    until = time.monotonic() + timeout
    for rank in range(group.size):
        while group.size > 1 and not group.posted(f"done/{rank}") and time.monotonic() < until:
            time.sleep(_POLL)


def agree(group: Group, facts: Mapping[str, Any]) -> None:
    """Make sure that every rank was started with the same configuration and data.

    Args:
        group: the ranks.
        facts: by name, what JSON can write; other values count with their ``repr``.

    Raises:
        DistributedError: a fact differs between ranks; the message names it.
    """
    names = sorted(facts)
    tables = [group.table(len(names))]
    if all(row == tables[0][0] for row in tables[0]):
        tables = [group.table(_digest(name), _digest(facts[name])) for name in names]
    for table, name in zip(tables, names, strict=False):
        other = next((rank for rank, row in enumerate(table) if row != table[0]), None)
        if other is not None:
            found = f"; here, on rank {group.rank}, {name} is {facts[name]!r}"
            raise DistributedError(
                f"ranks 0 and {other} differ in {name if len(tables) == len(names) else 'options'}"
                f"{found}. Start every rank with the same options, code and data."
            )


def after_first(group: Group, build: Callable[[], _T]) -> _T:
    """Call ``build`` on one rank of each machine, then on its others.

    For what writes a cache that the others read. They wait as long as it takes, or until a rank
    reports an error.

    Raises:
        DistributedError: the first rank failed.
    """
    if group.size == 1:
        return build()
    machine = os.environ.get("GROUP_RANK", "0")
    if os.environ.get("LOCAL_RANK", str(group.rank)) == "0":
        result = build()
        group.post(f"built/{machine}")
        return result
    while not group.posted(f"built/{machine}"):
        time.sleep(_POLL)
    return build()


def _digest(value: Any) -> int:
    text = json.dumps(value, sort_keys=True, default=repr)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
