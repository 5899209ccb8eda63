"""One rank of a run that torchrun starts.

Called as ``python -m sharding.rank '{"task": …, "quick": …, "each": …}' FILE``; the first rank
writes what it found, as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from qcompile.data.codespell import datasets
from qcompile.distributed import Group, ranks, sum_gradients
from qcompile.training import TrainConfig, train
from qcompile.training.batches import Batches
from qcompile.training.build import build_model, build_optimizer
from sharding.many import one_of_many
from sharding.messages import formula
from sharding.problem import BATCH, WIDTH, config, data

__all__ = ["carry_out"]


def steps(group: Group, quick: bool, count: int) -> dict[str, float]:
    """Train some steps as the trainer does; return the figures of the median step."""
    examples = data(quick, BATCH * (count + 3))
    model = build_model(config(BATCH), examples, group).train()
    optimizer = build_optimizer(config(BATCH), model)
    batches = Batches(examples, BATCH, 0, group.rank, group.size).epoch(0)
    taken, waited, sent, expected = [], [], [], []
    for _ in range(count):
        features, labels = next(batches)
        table = group.table(len(labels), features.nnz, labels.shape[1])
        counts, stored, widths = (list(column) for column in zip(*table, strict=True))
        began, waiting, bytes_before = time.perf_counter(), group.seconds, group.bytes_sent
        optimizer.zero_grad()
        model(features, labels).loss.backward()
        sum_gradients(model, group)
        optimizer.step()
        taken.append(time.perf_counter() - began)
        waited.append(group.seconds - waiting)
        sent.append(group.bytes_sent - bytes_before)
        expected.append(formula(group.size, counts, stored, max(widths)))
    if sent != expected:
        raise SystemExit(f"bytes sent {sent[:3]} are not those of the formula {expected[:3]}")
    half = count // 2  # after memory and tables have been made
    middle = [statistics.median(values[half:]) for values in (taken, waited, sent)]
    return {
        "step": middle[0],
        "fastest": min(taken[half:]),
        "waiting": middle[1],
        "sent": int(middle[2]),
    }


def learn(group: Group, quick: bool) -> dict[str, float]:
    """Train on the codespell task."""
    result = train(
        TrainConfig(hidden=(WIDTH,), epochs=1 if quick else 5, evaluate_every=0),
        *datasets(),
        group=group,
    )
    return {"precision_at_1": result.metrics["P@1"], "loss": result.history[-1].loss}


def carry_out(request: dict[str, Any], group: Group) -> dict[str, float]:
    """Do what is asked for as one rank."""
    quick = request["quick"]
    count = 24 if quick else 60
    if request["task"] == "steps":
        return steps(group, quick, count)
    if request["task"] == "learn":
        return learn(group, quick)
    return one_of_many(quick, request["each"], count // 4)


if __name__ == "__main__":
    with ranks() as group:
        found = carry_out(json.loads(sys.argv[1]), group)
        if group.rank == 0:
            Path(sys.argv[2]).write_text(json.dumps(found))
