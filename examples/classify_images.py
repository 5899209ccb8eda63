"""Train a quadratic network and its first-order counterpart on images, side by side.

    python examples/classify_images.py [--data digits|fashion-mnist|FOLDER] [--epochs N]
        [--model NAME …] [--scale X] [--output DIR]

Without --data it takes Fashion-MNIST where the package dataset-fashion-mnist is installed, else
scikit-learn's digits. DIR gets a checkpoint after each epoch, from which the same command goes on,
a picture of the curves and one of images with their predictions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from qcompile import models
from qcompile.analysis.pictures import draw_curves
from qcompile.cli.output import print_rows
from qcompile.data.images import load
from qcompile.errors import QCompileError
from qcompile.flops import measure
from qcompile.training.classifying import ClassifierTraining
from qcompile.training.epochs import progress_bar

NAMES = [
    *("resnet14", "resnet20", "resnet32", "mobilenet", "vgg7", "vgg13"),
    *("qresnet14", "qresnet20", "qmobilenet", "qvgg7"),
]


def train(options: argparse.Namespace) -> list[ClassifierTraining]:
    data, epochs, folder, runs = load(options.data), options.epochs, options.output, []
    side = 32 if any("vgg" in name for name in options.model) else None  # five poolings' room
    shape = {"channels": data.train_images.shape[1], "scale": options.scale}
    with progress_bar() as bar:
        for name in options.model:
            torch.manual_seed(0)
            model = getattr(models, name)(data.classes, **shape)
            runs.append(ClassifierTraining(name, model, data, epochs, folder, side=side))
            runs[-1].train(bar)
    return runs


def row(run: ClassifierTraining) -> dict[str, str]:
    flops = measure(torch.nn.Sequential(run.model), (run.test_images[:1],), {}).flops[""]
    return {
        "network": run.name,
        "parameters": f"{sum(p.numel() for p in run.model.parameters()):,}",
        "FLOPs an image": f"{flops:,}",
        "test accuracy": f"{run.curve[-1]['accuracy']:.4f}",
        "s an epoch": f"{run.curve[-1]['seconds']:.1f}",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="digits, fashion-mnist, or a folder (MNIST's, CIFAR's)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--model", nargs="+", choices=NAMES, default=["resnet20", "qresnet14"])
    parser.add_argument("--scale", type=float, default=0.5, help="of all widths (default 0.5)")
    parser.add_argument("--output", type=Path, default=Path("runs/images"))
    options = parser.parse_args(arguments)
    try:
        runs = train(options)
        curves = {run.name: run.curve for run in runs}
        draw_curves(curves, ["accuracy", "loss"], options.output / "curves.png")
        runs[-1].draw(options.output / "predictions.png")
    except QCompileError as error:
        print(f"classify_images: {error}", file=sys.stderr)
        return 1
    print_rows([row(run) for run in runs], f"{runs[0].data.name}, {options.epochs} epochs")
    print(f"pictures and checkpoints: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
