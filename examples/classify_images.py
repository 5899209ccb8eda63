"""Train a quadratic network and its first-order counterpart on images, side by side.

    python examples/classify_images.py [--data digits|fashion-mnist|FOLDER] [--epochs N]
        [--model NAME …] [--scale X] [--output DIR]

Without --data it takes Fashion-MNIST where the package dataset-fashion-mnist is installed, else
scikit-learn's digits. DIR gets a checkpoint after each epoch, from which the same command goes on,
a picture of the curves and one of images with their predictions. Ctrl-C loses less than an epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from qcompile.data.images import ImageSet, load
from qcompile.errors import DataError, TrainingError
from qcompile.flops import measure
from qcompile.models.mobilenet import mobilenet, qmobilenet
from qcompile.models.resnet import qresnet14, qresnet20, resnet14, resnet20, resnet32
from qcompile.optim import quadratic_groups
from qcompile.training import ExtremeValues, clip_gradients

MODELS = {
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "qresnet14": qresnet14,
    "qresnet20": qresnet20,
    "mobilenet": mobilenet,
    "qmobilenet": qmobilenet,
}
BATCH, RATE, DECAY, CLIP = 64, 0.1, 5e-4, 0.5


def tensors(images: np.ndarray, most: int) -> Tensor:
    """Return images as float32 in −1 to 1."""
    return torch.from_numpy(images.astype(np.float32) * (2 / most) - 1)


class Run:
    """One network on its way; its state is a checkpoint."""

    def __init__(self, name: str, data: ImageSet, scale: float, epochs: int, folder: Path) -> None:
        self.name, self.epochs, self.path = name, epochs, folder / f"{name}.pt"
        torch.manual_seed(0)
        channels = data.train_images.shape[1]
        self.model = MODELS[name](data.classes, channels=channels, scale=scale)
        groups = quadratic_groups(self.model, RATE, scale=1.0, weight_decay=DECAY)
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        steps = epochs * -(-len(data.train_images) // BATCH)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.curve: list[dict[str, float]] = []
        self.settings = {"data": data.name, "scale": scale, "epochs": epochs}
        if self.path.exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.path, weights_only=True)
        if state["settings"] != self.settings:
            raise DataError(
                f"{self.path} is of another run ({state['settings']}, now {self.settings}); name "
                "another --output, or remove it."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.curve = state["curve"]

    def save(self) -> None:
        """Write the checkpoint under a temporary name first."""
        temporary = self.path.with_suffix(f".{os.getpid()}")
        state = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "curve": self.curve,
        }
        torch.save(state, temporary)
        temporary.replace(self.path)

    def train(self, data: ImageSet, bar: Progress) -> None:
        """Train what is left of the epochs, with a checkpoint after each."""
        images, labels = tensors(data.train_images, data.most), torch.from_numpy(data.train_labels)
        steps = -(-len(images) // BATCH)
        task = bar.add_task(self.name, total=steps * self.epochs, completed=steps * len(self.curve))
        for epoch in range(len(self.curve), self.epochs):
            order = torch.Generator().manual_seed(epoch)
            began, total = time.perf_counter(), 0.0
            self.model.train()
            with ExtremeValues(self.model, every=20):
                for batch in torch.randperm(len(images), generator=order).split(BATCH):
                    loss = F.cross_entropy(self.model(images[batch]), labels[batch])
                    self.optimizer.zero_grad()
                    loss.backward()
                    clip_gradients(self.model, CLIP)
                    self.optimizer.step()
                    self.schedule.step()
                    total += float(loss.detach())
                    bar.update(task, advance=1, description=f"{self.name} loss {loss:.3f}")
            self.curve.append(
                {
                    "seconds": time.perf_counter() - began,
                    "loss": total / steps,
                    "accuracy": accuracy(self.predict(data), data.test_labels),
                }
            )
            self.save()

    @torch.no_grad()
    def predict(self, data: ImageSet) -> np.ndarray:
        """Return the class of each test image."""
        self.model.eval()
        parts = tensors(data.test_images, data.most).split(512)
        return torch.cat([self.model(part).argmax(1) for part in parts]).numpy()


def accuracy(found: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of right answers."""
    return float((found == labels).mean())


def draw_curves(runs: list[Run], path: Path) -> None:
    """Draw test accuracy and training loss against epochs."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    for place, what in enumerate(("accuracy", "loss")):
        axes = drawn.add_subplot(1, 2, place + 1)
        for run in runs:
            values = [point[what] for point in run.curve]
            axes.plot(range(1, len(values) + 1), values, "o-", label=run.name)
        axes.set(xlabel="epoch", ylabel=f"{'test' if what == 'accuracy' else 'training'} {what}")
    axes.legend()
    drawn.savefig(path, dpi=120)


def draw_predictions(run: Run, data: ImageSet, path: Path) -> None:
    """Draw test images with what was predicted, red where it is wrong."""
    found = run.predict(data)
    wrong = np.flatnonzero(found != data.test_labels)
    right = np.flatnonzero(found == data.test_labels)
    drawn = Figure(figsize=(10, 4.4), layout="constrained")
    for place, at in enumerate([*right[:10], *wrong[:10]]):
        axes = drawn.add_subplot(2, 10, place + 1)
        image = data.test_images[at].transpose(1, 2, 0) / data.most
        axes.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray")
        colour = "black" if found[at] == data.test_labels[at] else "red"
        axes.set_title(f"{found[at]} ({data.test_labels[at]})", fontsize=9, color=colour)
        axes.axis("off")
    drawn.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="digits, fashion-mnist, or a folder (MNIST's, CIFAR-10's)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["resnet20", "qresnet14"])
    parser.add_argument("--scale", type=float, default=0.5, help="of all widths (default 0.5)")
    parser.add_argument("--output", type=Path, default=Path("runs/images"))
    options = parser.parse_args(arguments)
    try:
        data = load(options.data)
        options.output.mkdir(parents=True, exist_ok=True)
        runs = [
            Run(name, data, options.scale, options.epochs, options.output) for name in options.model
        ]
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            for run in runs:
                run.train(data, bar)
    except (DataError, TrainingError) as error:
        print(f"classify_images: {error}", file=sys.stderr)
        return 1
    _tell(runs, data)
    draw_curves(runs, options.output / "curves.png")
    draw_predictions(runs[-1], data, options.output / "predictions.png")
    told = {run.name: {**run.settings, "curve": run.curve} for run in runs}
    (options.output / "curves.json").write_text(json.dumps(told, indent=1))
    print(f"pictures and checkpoints: {options.output}")
    return 0


def _tell(runs: list[Run], data: ImageSet) -> None:
    table = Table(title=f"{data.name}: {len(data.train_images):,} images to learn from")
    for heading in ("network", "parameters", "FLOPs an image", "test accuracy", "s an epoch"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    example: Any = tensors(data.test_images[:1], data.most)
    for run in runs:
        last = run.curve[-1]
        table.add_row(
            run.name,
            f"{sum(p.numel() for p in run.model.parameters()):,}",
            f"{measure(nn.Sequential(run.model), (example,), {}).flops['']:,}",
            f"{last['accuracy']:.4f}",
            f"{last['seconds']:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
