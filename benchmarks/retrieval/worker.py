"""One engine in a process of its own, which answers one request at a time.

Started by :mod:`retrieval.turns`; requests and answers are lines of JSON. While it waits for a
request it takes no processor, so engines take turns though their thread pools could not share one
process.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.engine import Engine, K, Search
from retrieval.engines import ENGINES
from retrieval.heads import Head
from retrieval.load import load

__all__ = ["Worker"]


class Worker:
    """An engine, its head and the answers that are right."""

    def __init__(self, name: str, head: str, folder: str, threads: int) -> None:
        self.engine: Engine = ENGINES[name]
        self.head: Head = load(head, Path(folder))
        self.threads = threads
        index = (name + self.engine.layout).replace(" ", "-")
        self.place = Path(folder) / "indexes" / head / index
        self.calls: dict[str, Search] = {}

    def build(self) -> dict[str, float]:
        """Build the index and write it, unless it is there already."""
        report = self.place / "build.json"
        if not report.is_file():
            self.place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.place.parent) as folder:
                whole = Path(folder) / "index"
                whole.mkdir()
                touched = float(np.asarray(self.head.weight).sum())  # read from disk beforehand
                start, cpu = time.perf_counter(), _cpu_seconds()
                write = self.engine.build(self.head, whole)
                figures = {
                    "build_cpu_s": _cpu_seconds() - cpu,
                    "build_s": time.perf_counter() - start,
                }
                assert np.isfinite(touched)
                write()
                size = sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
                (whole / "build.json").write_text(json.dumps({**figures, "bytes": size}))
                shutil.rmtree(self.place, ignore_errors=True)
                whole.replace(self.place)
        return dict(json.loads(report.read_text()))

    def open(self) -> dict[str, float]:
        """Open the index, answer once, and say what that took."""
        self.head.queries[:64].sum()
        before = _resident_bytes()
        start = time.perf_counter()
        self.engine.open(self.head, self.place, self.threads)
        points = self.engine.points(self.head)
        call = self._call(points[len(points) // 2])
        opened = time.perf_counter() - start
        for query in self.head.queries[:256]:
            call(query[None])
        return {"open_s": opened, "resident_bytes": _resident_bytes() - before}

    def points(self) -> list[dict[str, Any]]:
        """Return the settings to try."""
        return self.engine.points(self.head)

    def recall(self, point: dict[str, Any], right: str, count: int) -> dict[str, float]:
        """Compare answers with the right ones: of the best class, and of the ten best."""
        call, truth = self._call(point), np.load(right, mmap_mode="r")[:count]
        found = np.concatenate([call(some) for some in _batches(self.head.queries[:count], 64)])
        assert found.shape == (len(truth), K)
        hits = (found[:, :, None] == truth[:, None, :]).any(axis=1)
        return {"recall_1": float((found[:, 0] == truth[:, 0]).mean()), "recall_10": hits.mean()}

    def time(self, point: dict[str, Any], batch: int, calls: int, seed: int) -> list[float]:
        """Return the milliseconds of some calls, after one that is not counted."""
        call = self._call(point)
        random = np.random.default_rng(seed)
        queries = self.head.queries
        chosen = [
            np.asarray(queries[random.integers(len(queries), size=batch)]) for _ in range(calls + 1)
        ]
        call(chosen[0])
        took = []
        for some in chosen[1:]:
            start = time.perf_counter()
            call(some)
            took.append(1e3 * (time.perf_counter() - start))
        return took

    def _call(self, point: dict[str, Any]) -> Search:
        key = json.dumps(point)
        if key not in self.calls:
            self.calls[key] = self.engine.search(point)
        return self.calls[key]


def _batches(queries: np.ndarray, size: int) -> list[np.ndarray]:
    return [np.asarray(queries[i : i + size]) for i in range(0, len(queries), size)]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_bytes() -> int:
    """Return what the process holds in memory, mapped files that it has read included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker(*json.loads(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
