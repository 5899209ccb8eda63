"""What keeps deep quadratic networks from diverging: plain SGD against the settings for them.

Networks of three and of six quadratic layers without normalisation learn scikit-learn's digits with
SGD at a rate of 0.1 and momentum 0.9: plain, with gradients clipped, and with gradients clipped,
smaller rates for quadratic terms and a warm-up of them (`quadratic_groups`, `QuadraticWarmup`,
`clip_gradients`). `T4` and `Quadra` start afresh and as the first-order network that they contain.
Medians of three seeds; a run ends where `ExtremeValues` or `clip_gradients` finds NaN or infinity::

    python benchmarks/quadratic_optimizer.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from recording import record
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import qcompile
from qcompile.errors import QCompileWarning, TrainingError
from qcompile.nn import QuadraticLinear
from qcompile.optim import QuadraticWarmup, quadratic_groups
from qcompile.training import ExtremeValues, clip_gradients

RATE, WIDTH, BATCH = 0.1, 64, 64
SCALE, CLIP, WARM_UP = 0.3, 0.5, 200
WAYS = ("plain", "clipped", "clipped, scaled, warmed up")
NETWORKS = (
    *((form, depth, False) for depth in (3, 6) for form in ("T2", "T3", "T4", "Quadra")),
    *((form, 6, True) for form in ("T4", "Quadra")),
)


@dataclass(frozen=True)
class Row:
    """One network, trained in one way with one seed.

    Args:
        preserved: whether it started as a first-order network.
        diverged: the step that ended it, or None.
        where: what was named then.
        accuracy: on held-out digits; None for a run that diverged.
    """

    form: str
    depth: int
    preserved: bool
    way: str
    seed: int
    diverged: int | None
    where: str
    accuracy: float | None


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs float32 [1797, 64] in −1 to 1, labels, and which of them are trained on."""
    found = load_digits()
    inputs = torch.tensor(found.data / 8 - 1, dtype=torch.float32)
    return inputs, torch.tensor(found.target), torch.arange(len(inputs)) % 5 != 0


def network(form: str, depth: int, preserved: bool, seed: int) -> nn.Sequential:
    """Return quadratic layers one after the other, and a first-order layer for the classes."""
    torch.manual_seed(seed)
    if preserved:
        layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(depth)))
        layers = qcompile.transform(layers, quadratic=qcompile.Quadratic(form, init="preserve"))
    else:
        layers = nn.Sequential(*(QuadraticLinear(WIDTH, WIDTH, form=form) for _ in range(depth)))
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def train(form: str, depth: int, preserved: bool, way: str, seed: int, epochs: int) -> Row:
    """Train one network; end early where a value is NaN or infinite."""
    model = network(form, depth, preserved, seed)
    settled = way == WAYS[2]
    groups = quadratic_groups(model, RATE, scale=SCALE if settled else 1.0)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    schedule = QuadraticWarmup(optimizer, WARM_UP) if settled else None
    inputs, labels, seen = digits()
    some, right = inputs[seen], labels[seen]
    order = torch.Generator().manual_seed(seed)
    step = 0
    try:
        with ExtremeValues(model):
            for _ in range(epochs):
                for batch in torch.randperm(len(some), generator=order).split(BATCH):
                    loss = F.cross_entropy(model(some[batch]), right[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    clip_gradients(model, float("inf") if way == "plain" else CLIP)
                    optimizer.step()
                    if schedule is not None:
                        schedule.step()
                    step += 1
    except TrainingError as error:
        where = str(error).split(" returned")[0].split(" holds")[0]
        return Row(form, depth, preserved, way, seed, step, where, None)
    with torch.no_grad():
        answers = model.eval()(inputs[~seen]).argmax(1)
    accuracy = float((answers == labels[~seen]).float().mean())
    return Row(form, depth, preserved, way, seed, None, "", round(accuracy, 4))


def draw(rows: list[Row]) -> Table:
    """Lay out a line a network, a column a way."""
    table = Table(title="accuracy on held-out digits, or where and when it diverged")
    for heading in ("form", "layers", "starts", *WAYS):
        table.add_column(heading)
    for form, depth, preserved in dict.fromkeys((r.form, r.depth, r.preserved) for r in rows):
        cells = [form, str(depth), "first-order" if preserved else "afresh"]
        for way in WAYS:
            key = (form, depth, preserved, way)
            cells.append(_told([r for r in rows if (r.form, r.depth, r.preserved, r.way) == key]))
        table.add_row(*cells)
    return table


def _told(rows: list[Row]) -> str:
    diverged = [row for row in rows if row.diverged is not None]
    if len(diverged) * 2 > len(rows):
        steps = statistics.median_low(row.diverged or 0 for row in diverged)
        return f"diverged, step {steps} ({diverged[0].where})"
    return f"{statistics.median(row.accuracy or 0.0 for row in rows):.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, five epochs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore", QCompileWarning)
    torch.set_num_threads(1)  # the layers are too small for more
    seeds, epochs = (1, 5) if options.quick else (3, 15)
    rows = [
        train(*each, way, seed, epochs)
        for each in NETWORKS
        for way in WAYS
        for seed in range(seeds)
    ]
    Console(width=140 if not sys.stdout.isatty() else None).print(draw(rows))
    settled = [row for row in rows if row.way == WAYS[2]]
    bars = [
        {
            "name": "runs that diverged, plain",
            "value": sum(r.diverged is not None for r in rows if r.way == "plain"),
            "target": 1,
            "ok": any(r.diverged is not None for r in rows if r.way == "plain"),
        },
        {
            "name": f"runs that diverged, {WAYS[2]}",
            "value": sum(row.diverged is not None for row in settled),
            "target": 0,
            "ok": all(row.diverged is None for row in settled),
        },
    ]
    for bar in bars:
        verdict = "ok" if bar["ok"] else "FAILED"
        print(f"{verdict:<6} {bar['name']}: {bar['value']}")
    status = record(options.json, ("torch", "scikit-learn"), rows, bars)
    return 0 if options.quick else status


if __name__ == "__main__":
    sys.exit(main())
