"""One run in a process of its own, so that its memory and allocator are its own.

Called as ``python -m extreme.run '{"problem": …, "kind": …, "options": …, …}'``; prints one line
of JSON. ``steps`` asks for the time of so many steps after a warm-up, ``epochs`` or ``seconds`` for
training with P@1 and P@5 at its end, over all test rows, and on the way, over the same 3,000 of
them each time.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from extreme.networks import Network, make
from extreme.problems import load
from qcompile.data.metrics import precision_at_k
from qcompile.data.sparse_dataset import SparseBatch, SparseDataset

__all__ = ["run"]

_SCORED = 128  # test rows scored at a time
_SAMPLE = 3_000  # test rows scored on the way


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out a request and return its figures."""
    torch.set_num_threads(request.get("threads", 2))
    problem, train, test = load(request["problem"])
    network = make(request["kind"], problem, train, request["options"])
    batches = _batches(train, problem.batch)
    if "steps" in request:
        figures: dict[str, Any] = _time(network, batches, request["warmup"], request["steps"])
        figures["seconds_per_1000"] = figures["step_ms"] / problem.batch
    else:
        sample = test.labelled_rows
        if len(sample) > _SAMPLE:
            sample = np.sort(np.random.default_rng(0).choice(sample, _SAMPLE, replace=False))
        rows = test.subset(sample)
        figures = {"curve": list(_curve(network, batches, train, rows, problem.batch, request))}
        figures["p1"], figures["p5"] = _precision(network, test)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**figures, "peak_mb": peak * 1024 / 1e6}


def _batches(train: SparseDataset, size: int) -> Iterator[SparseBatch]:
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(train.labelled_rows)
        for begin in range(0, len(order) - size + 1, size):
            yield train.batch(order[begin : begin + size])


def _time(
    network: Network, batches: Iterator[SparseBatch], warmup: int, steps: int
) -> dict[str, Any]:
    """Time all of a step but the making of its batch, which is the same for everybody."""
    seconds = []
    for number in range(warmup + steps):
        batch = next(batches)
        start = time.perf_counter()
        network.step(batch)
        if number >= warmup:
            seconds.append(time.perf_counter() - start)
    # The mean, such that re-hashes count for what they cost.
    return {
        "step_ms": 1000 * float(np.mean(seconds)),
        "median_ms": 1000 * float(np.median(seconds)),
    }


def _curve(
    network: Network,
    batches: Iterator[SparseBatch],
    train: SparseDataset,
    test: SparseDataset,
    size: int,
    request: dict[str, Any],
) -> Iterator[dict[str, float]]:
    """Yield P@1 and P@5 against the seconds spent on training alone."""
    per_epoch = len(train.labelled_rows) // size
    most = request.get("epochs", 1e9) * per_epoch
    every = max(1, round(request.get("every", 1.0) * per_epoch))
    spent, step = 0.0, 0
    while step < most and spent < request.get("seconds", float("inf")):
        start = time.perf_counter()
        for _ in range(int(min(every, most - step))):
            network.step(next(batches))
            step += 1
        spent += time.perf_counter() - start
        first, fifth = _precision(network, test)
        point = {"seconds": spent, "epochs": step / per_epoch, "p1": first, "p5": fifth}
        print(json.dumps(point), file=sys.stderr, flush=True)
        yield point


def _precision(network: Network, test: SparseDataset) -> tuple[float, float]:
    rows = test.labelled_rows
    weight, bias = network.output()
    answers, labels = [], []
    buffer = torch.empty(_SCORED, len(bias))  # a fresh one costs as much as half of the products
    with torch.no_grad():
        for begin in range(0, len(rows), _SCORED):
            batch = test.batch(rows[begin : begin + _SCORED])
            scores = buffer[: len(batch.labels)]
            torch.addmm(bias, network.hidden(batch), weight.T, out=scores)
            answers.append(scores.topk(5).indices.numpy())
            labels.append(batch.labels)
    width = max(part.shape[1] for part in labels)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=-1) for p in labels]
    found, right = np.concatenate(answers), np.concatenate(padded)
    return precision_at_k(found, right, 1), precision_at_k(found, right, 5)


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
