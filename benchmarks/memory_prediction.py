"""Memory of a training step: predicted without running it, beside what running it takes.

For each model with random weights: the predicted peak and what it consists of, the peak of torch's
allocator in a process that takes the step, their ratio, and how long both took.

    python benchmarks/memory_prediction.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recording import record
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from transform_table import import_torchvision

import qcompile
from qcompile.memory import MemoryProfile, Source, format_bytes, memory_profile

BAR = 0.15


@dataclass(frozen=True)
class Case:
    """One model and how it is trained; ``make`` is a function of this file."""

    make: Callable[[], nn.Module]
    inputs: Any
    optimizer: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One model; memory in bytes."""

    model: str
    inputs: str
    optimizer: str
    predicted: int
    measured: int
    ratio: float
    breakdown: dict[str, int]
    phase: str
    resident: int | None
    seconds_to_predict: float
    seconds_to_measure: float


def resnet18() -> nn.Module:
    return import_torchvision().models.resnet18(weights=None)


def efficientnet_b0() -> nn.Module:
    import_torchvision()
    import timm

    return timm.create_model("efficientnet_b0")


def vit_tiny() -> nn.Module:
    import_torchvision()
    import timm

    return timm.create_model("vit_tiny_patch16_224")


def small_bert() -> nn.Module:
    import_torchvision()
    import transformers

    config = transformers.BertConfig(
        vocab_size=8000,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    return transformers.BertForMaskedLM(config)


def vgg() -> nn.Module:
    """Return a VGG-13 for images of 32 by 32."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256, 512, 512):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def sparse_output() -> nn.Module:
    model = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 200_000))
    return qcompile.transform(model, sparse_output=True)


def quadratic_resnet18() -> nn.Module:
    return qcompile.transform(resnet18(), "Quadra")


def quadratic_vgg() -> nn.Module:
    return qcompile.transform(vgg(), "T2_4")


def cases(quick: bool) -> list[Case]:
    """Return the models, smaller ones where it has to be quick."""
    batch, side = (8, 64) if quick else (32, 128)
    image = torch.randn(batch, 3, side, side)
    small = torch.randn(batch * 4, 3, 32, 32)
    tokens = torch.randint(8000, (batch // 4, 128))
    features, labels = torch.randn(256, 512), torch.randint(200_000, (256,))
    found = [
        Case(resnet18, image, "momentum", {}),
        Case(vgg, small, "momentum", {}),
        Case(small_bert, {"input_ids": tokens, "labels": tokens}, "adam", {}),
        Case(sparse_output, features, "qcompile-adam", {"target": labels}),
    ]
    if quick:
        return found
    return [
        *found,
        Case(efficientnet_b0, image, "adamw", {}),
        Case(vit_tiny, torch.randn(batch // 4, 3, 224, 224), "adamw", {"autocast": "bfloat16"}),
        Case(quadratic_resnet18, image, "momentum", {}),
        Case(quadratic_vgg, small, "momentum", {}),
    ]


def examine(case: Case) -> Row:
    """Predict and measure one model."""
    torch.manual_seed(0)
    name = case.make.__name__
    model = case.make()
    options = {"optimizer": case.optimizer, **case.options}
    start = time.perf_counter()
    memory_profile(model, case.inputs, **options)
    between = time.perf_counter()
    source = Source(f"memory_prediction:{name}")
    profile = memory_profile(model, case.inputs, measure=True, source=source, **options)
    end = time.perf_counter()
    return row(name, case, profile, between - start, end - between - (between - start))


def row(name: str, case: Case, profile: MemoryProfile, predict: float, measure: float) -> Row:
    predicted, measured = profile.predicted, profile.measured
    assert predicted is not None
    assert measured is not None
    tensors = list(case.inputs.values()) if isinstance(case.inputs, dict) else [case.inputs]
    how = [case.optimizer, *(f"{k} {v}" for k, v in case.options.items() if k == "autocast")]
    return Row(
        model=name,
        inputs="×".join(map(str, tensors[0].shape)),
        optimizer=", ".join(how),
        predicted=predicted.total,
        measured=measured.peak,
        ratio=round(predicted.total / measured.peak, 4),
        breakdown=predicted.breakdown,
        phase=predicted.phase,
        resident=measured.resident,
        seconds_to_predict=round(predict, 2),
        seconds_to_measure=round(measure, 2),
    )


def draw(rows: list[Row]) -> Table:
    """Lay the rows out for a terminal."""
    table = Table(title="peak of a training step")
    for heading in ("model", "input", "optimiser"):
        table.add_column(heading, no_wrap=True)
    for heading in ("predicted", "measured", "ratio", "activations", "process", "s", "s to run"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in rows:
        table.add_row(
            each.model.replace("_", " "),
            each.inputs,
            each.optimizer,
            format_bytes(each.predicted),
            format_bytes(each.measured),
            f"{each.ratio:.3f}",
            format_bytes(each.breakdown["activations"]),
            "" if each.resident is None else format_bytes(each.resident),
            f"{each.seconds_to_predict:.1f}",
            f"{each.seconds_to_measure:.1f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four small models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    console = Console(stderr=True)
    found = track(cases(options.quick), description="models", console=console)
    rows = [examine(case) for case in found]
    Console(width=140).print(draw(rows))
    bars = [
        {
            "name": f"{each.model}: predicted peak / measured peak - 1",
            "value": round(abs(each.ratio - 1), 4),
            "target": BAR,
            "ok": abs(each.ratio - 1) <= BAR,
        }
        for each in rows
    ]
    return record(options.json, ("torch", "torchvision", "timm", "transformers"), rows, bars)


if __name__ == "__main__":
    sys.exit(main())
