"""Train generators of images, quadratic and first-order, side by side.

    python examples/generate_images.py [--data digits|fashion-mnist|FOLDER] [--epochs N]
        [--form none|Quadra|… …] [--scale X] [--output DIR]

Without --data it takes Fashion-MNIST where the package dataset-fashion-mnist is installed, else
scikit-learn's digits. The score is the Fréchet distance to the test images by the features of a
small classifier, which is trained first. DIR gets a checkpoint after each epoch, from which the
same command goes on, a picture of each generator's images and one of the scores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from qcompile.analysis.pictures import draw_curves, draw_images
from qcompile.cli.output import print_rows
from qcompile.data.images import load
from qcompile.errors import QCompileError
from qcompile.models import Discriminator, Generator
from qcompile.training.adversarial import AdversarialTraining
from qcompile.training.epochs import progress_bar
from qcompile.training.judging import FrechetJudge


def train(options: argparse.Namespace) -> None:
    data, folder, runs = load(options.data), options.output, []
    judge = FrechetJudge(data, Generator.side, folder)
    with progress_bar() as bar:
        judge.train(bar)
        for form in options.form:
            torch.manual_seed(0)
            kind = {"scale": options.scale, "form": None if form == "none" else form}
            generator = Generator(channels=judge.images.shape[1], **kind)
            discriminator = Discriminator(judge.images.shape[1], **kind)
            networks, name = (generator, discriminator), f"{form}-{options.scale:g}"
            run = AdversarialTraining(name, *networks, judge.images, options.epochs, folder, judge)
            run.train(bar)
            draw_images(run.sample(100), folder / f"{name}.png")
            runs.append(run)
    draw_curves({run.name: run.curve for run in runs}, ["score"], folder / "scores.png")
    rows = [row("training images", "", judge.floor(), "")]
    for run in runs:
        size = f"{sum(p.numel() for p in run.generator.parameters()):,}"
        rows.append(row(run.name, size, run.curve[-1]["score"], f"{run.curve[-1]['seconds']:.1f}"))
    print_rows(rows, f"{data.name}, judged by a classifier of accuracy {judge.accuracy:.4f}")
    print(f"pictures and checkpoints: {folder}")


def row(name: str, size: str, score: float, seconds: str) -> dict[str, str]:
    distance = f"{score:.3f}"
    return {"images": name, "parameters": size, "distance": distance, "s an epoch": seconds}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="digits, fashion-mnist, or a folder (MNIST's, CIFAR's)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--form", nargs="+", default=["none", "Quadra"])
    parser.add_argument("--scale", type=float, default=0.25, help="of all widths (default 0.25)")
    parser.add_argument("--output", type=Path, default=Path("runs/generated"))
    try:
        train(parser.parse_args(arguments))
    except QCompileError as error:
        print(f"generate_images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
