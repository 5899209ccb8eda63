"""Train detectors, quadratic and first-order, side by side.

    python examples/detect_shapes.py [--data FOLDER] [--images N] [--epochs N]
        [--model NAME …] [--scale X] [--side PIXELS] [--output DIR]

Without --data the images are drawn: shapes of any turn on textures. FOLDER is one of Pascal VOC's
layout, with the splits trainval and test. The measure is VOC's mean average precision, the area.
DIR gets a checkpoint after each epoch, from which the same command goes on, and pictures: curves,
and images with their objects in green and what each detector finds in red.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from qcompile import models
from qcompile.analysis.pictures import draw_curves
from qcompile.cli.output import print_rows
from qcompile.data.shapes import Shapes
from qcompile.data.voc import VOC
from qcompile.errors import QCompileError
from qcompile.training.detecting import DetectorTraining
from qcompile.training.epochs import progress_bar


def train(options: argparse.Namespace) -> list[DetectorTraining]:
    side, runs = options.side, []
    learnt, tested = Shapes(options.images, side), Shapes(options.images // 4 or 1, side, seed=1)
    if options.data is not None:
        learnt, tested = (VOC(options.data, split, side) for split in ("trainval", "test"))
    with progress_bar() as bar:
        for name in options.model:
            torch.manual_seed(0)
            model = getattr(models, name)(len(learnt.classes), side=side, scale=options.scale)
            run = DetectorTraining(name, model, learnt, tested, options.epochs, options.output)
            run.train(bar)
            run.draw(options.output / f"{name}.png")
            runs.append(run)
    return runs


def row(run: DetectorTraining) -> dict[str, str]:
    last = run.curve[-1]
    return {
        "detector": run.name,
        "parameters": f"{sum(p.numel() for p in run.model.parameters()):,}",
        "mAP": f"{last['mAP']:.4f}",
        "s an epoch": f"{last['seconds']:.1f}",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of Pascal VOC's layout")
    parser.add_argument("--images", type=int, default=3000, help="drawn to learn from")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", nargs="+", default=["ssd7", "qssd7"], help="or ssd13")
    parser.add_argument("--scale", type=float, default=0.25, help="of all widths (default 0.25)")
    parser.add_argument("--side", type=int, default=96, help="of an image (default 96)")
    parser.add_argument("--output", type=Path, default=Path("runs/detected"))
    options = parser.parse_args(arguments)
    try:
        runs = train(options)
        curves = {run.name: run.curve for run in runs}
        draw_curves(curves, ["mAP", "loss"], options.output / "curves.png")
    except QCompileError as error:
        print(f"detect_shapes: {error}", file=sys.stderr)
        return 1
    print_rows([row(run) for run in runs], f"{options.epochs} epochs")
    print(f"pictures and checkpoints: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
