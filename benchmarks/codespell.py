"""Training a huge output layer: the full softmax of torch against LSHLinear, on misspelled words.

One network, Embedding (summed) → ReLU → output, one data set, one optimiser, one schedule; only
the output layer differs. Variants take turns epoch by epoch and start from the same weights.

    python benchmarks/codespell.py [--quick] [--json FILE]

"full softmax" is torch's logsumexp over all 18,841 scores and dense Adam in one fused kernel;
"sampled softmax" is LSHLinear without its hash tables, as many neurons drawn uniformly instead,
which shows what hashing contributes. The embedding has row-sparse gradients in every variant.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recording import record
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from qcompile import LSH
from qcompile.data.codespell import FEATURES, Codespell, load
from qcompile.data.metrics import hit_at_k, precision_at_k
from qcompile.nn import LSHLinear
from qcompile.optim import Adam

WIDTH, BATCH, RATE = 128, 256, 4e-3
# Large tensors stay mapped between steps, on huge pages: without this the full softmax spends a
# good part of its time in page faults.
MALLOC = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("mmap_threshold", 2**32), ("trim_threshold", 2**32))
)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One variant, trained once."""

    variant: str
    run: int
    precision_at_1: float
    precision_at_5: float
    hit_at_5: float
    epoch_seconds: float
    total_seconds: float


class Network(nn.Module):
    """Character n-grams [batch, n] to hidden activations [batch, 128], and an output layer."""

    def __init__(self, output: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(FEATURES, WIDTH, padding_idx=0, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[0] = 0
        self.output = output

    def forward(self, ids: Tensor) -> Tensor:
        """Return the hidden activations."""
        return self.embedding(ids).sum(dim=1).relu()


def full_softmax(output: nn.Module) -> Loss:
    """Return the loss over every score; the labels of an example share its mass."""

    def loss(hidden: Tensor, labels: Tensor) -> Tensor:
        scores = output(hidden)
        real = labels >= 0
        chosen = (scores.gather(1, labels.clamp(min=0)) * real).sum(1) / real.sum(1)
        return (scores.logsumexp(1) - chosen).mean()

    return loss


class Variant:
    """One network in training."""

    def __init__(self, name: str, config: LSH | None, data: Codespell, epochs: int, run: int):
        torch.manual_seed(run)
        linear = nn.Linear(WIDTH, len(data.labels))
        self.name, self.run, self.data = name, run, data
        self.network = Network(linear if config is None else LSHLinear.from_linear(linear, config))
        output = self.network.output
        self.loss: Loss = (
            full_softmax(output) if config is None else lambda hidden, y: output(hidden, y).loss
        )
        self.optimizer = Adam(self.network.parameters(), lr=RATE)
        steps = epochs * -(-len(data.train_ids) // BATCH)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.01, steps)
        self.seconds: list[float] = []

    def epoch(self, number: int) -> None:
        """Train for one epoch and time it."""
        self.network.train()
        ids, labels = (
            torch.from_numpy(self.data.train_ids),
            torch.from_numpy(self.data.train_labels),
        )
        lengths = (ids != 0).sum(dim=1)
        generator = torch.Generator().manual_seed(1000 * self.run + number)
        begin = time.perf_counter()
        for batch in torch.randperm(len(ids), generator=generator).split(BATCH):
            words = ids[batch, : int(lengths[batch].max())]
            loss = self.loss(self.network(words), labels[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        self.seconds.append(time.perf_counter() - begin)

    @torch.no_grad()
    def row(self) -> Row:
        """Score the test words with every output."""
        self.network.eval()
        scores = self.network.output(self.network(torch.from_numpy(self.data.test_ids)))
        labels = self.data.test_labels
        return Row(
            self.name,
            self.run,
            precision_at_k(scores, labels, 1),
            precision_at_k(scores, labels, 5),
            hit_at_k(scores, labels, 5),
            statistics.median(self.seconds),
            sum(self.seconds),
        )


def run(quick: bool) -> list[Row]:
    """Train every variant, once or three times."""
    data = load()
    epochs = 4 if quick else 5
    default = LSH()
    configs: dict[str, LSH | None] = {"full softmax": None, "LSHLinear": default}
    if not quick:
        configs["sampled softmax"] = LSH(active=1, negatives=default.active + default.negatives)
    rows = []
    for number in range(1 if quick else 3):
        variants = [Variant(name, c, data, epochs, number) for name, c in configs.items()]
        for epoch in range(epochs):
            for variant in variants:
                variant.epoch(epoch)
                print(
                    f"run {number + 1}, epoch {epoch + 1}, {variant.name}: "
                    f"{variant.seconds[-1]:.1f} s",
                    file=sys.stderr,
                )
        rows += [variant.row() for variant in variants]
    return rows


def median(rows: list[Row], variant: str, field: str) -> float:
    """Return the median of one figure of one variant over the runs."""
    return statistics.median(getattr(row, field) for row in rows if row.variant == variant)


def bars(rows: list[Row]) -> list[dict[str, Any]]:
    """Compare with what LSH-sparse training has to reach."""
    lost = [median(rows, name, "precision_at_1") for name in ("full softmax", "LSHLinear")]
    spent = [median(rows, name, "total_seconds") for name in ("LSHLinear", "full softmax")]
    points, ratio = round(100 * (lost[0] - lost[1]), 2), round(spent[0] / spent[1], 3)
    return [
        {"name": "points of P@1 lost", "value": points, "target": 1.0, "ok": points <= 1},
        {
            "name": "share of the full softmax's time",
            "value": ratio,
            "target": 1.0,
            "ok": ratio < 1,
        },
    ]


def draw(rows: list[Row]) -> Table:
    """Return medians over the runs, and times as shares of the first variant's."""
    table = Table("variant", "P@1", "P@5", "hit@5", "s an epoch", "s in all", "share of time")
    first = median(rows, rows[0].variant, "total_seconds")
    for name in dict.fromkeys(row.variant for row in rows):
        total = median(rows, name, "total_seconds")
        table.add_row(
            name,
            *(
                f"{median(rows, name, f):.3f}"
                for f in ("precision_at_1", "precision_at_5", "hit_at_5")
            ),
            f"{median(rows, name, 'epoch_seconds'):.2f}",
            f"{total:.1f}",
            f"{total / first:.2f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one run, four epochs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows = run(options.quick)
    Console(width=None if sys.stdout.isatty() else 120).print(draw(rows))
    results = bars(rows)
    for bar in results:
        outcome = "ok    " if bar["ok"] else "FAILED"
        print(f"{outcome} {bar['name']}: {bar['value']} (≤ {bar['target']})")
    return record(options.json, ("torch", "numpy", "codespell"), rows, results)


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.argv])
    sys.exit(main())
