"""The transform table: what ``qcompile.transform`` does to well-known architectures.

For each model with random weights: how many layers become quadratic with ``Quadra`` and
``init="preserve"``, how many are skipped, which tracer was needed, parameters before and after,
the largest difference of outputs (0 means equal bit for bit), whether a second run changes
anything, and which layer is found to compute the output.

    python benchmarks/transform_table.py [--quick] [--json FILE]
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

import qcompile
from qcompile.rewrite import explain

Inputs = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One model; counts are of layers, sizes of parameters."""

    model: str
    rewritten: int
    skipped: int
    tracer: str
    parameters_before: int
    parameters_after: int
    max_difference: float
    second_run_modified: bool
    output_layer: str
    seconds: float


def import_torchvision() -> Any:
    """Import torchvision, declaring operators that its CUDA build lacks beside a CPU torch."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision._operators = library  # the declarations live as long as this object
    return torchvision


def image_models(quick: bool) -> dict[str, Callable[[], nn.Module]]:
    """Return constructors of models that take one image."""
    torchvision = import_torchvision()
    import timm

    names = ["resnet18", "mobilenet_v2", "densenet121", "convnext_tiny", "vit_b_16", "vgg11"]
    timm_names = [
        "resnet18",
        "mobilenetv3_small_100",
        "densenet121",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "vgg11",
    ]
    if quick:
        names, timm_names = names[:2], timm_names[:2]
    get = torchvision.models.get_model
    models = {f"torchvision {name}": lambda name=name: get(name, weights=None) for name in names}
    create = timm.create_model
    return models | {f"timm {name}": lambda name=name: create(name) for name in timm_names}


def language_models() -> dict[str, Callable[[], nn.Module]]:
    """Return constructors of small language models with vocabularies of full size."""
    import transformers

    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    size["num_attention_heads"] = 2
    bert = transformers.BertConfig(**size)
    llama = transformers.LlamaConfig(**size, num_key_value_heads=2)
    return {
        "transformers BERT (tiny)": lambda: transformers.BertForMaskedLM(bert),
        "transformers Llama (tiny)": lambda: transformers.LlamaForCausalLM(llama),
    }


def call(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Return the model's main output."""
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return output if isinstance(output, torch.Tensor) else output.logits


def examine(name: str, make: Callable[[], nn.Module], inputs: Inputs) -> Row:
    """Transform one model in every way that the table shows."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if not parameter.any():  # zeros, as in a fresh ViT head, would hide a difference
            nn.init.normal_(parameter, std=0.1)
    before = call(model, inputs)
    sparse = qcompile.LSH(tables=1, min_outputs=1000)
    found = explain(model, sparse_output=sparse, example_inputs=inputs).rewritten
    start = time.perf_counter()
    preserve = qcompile.Quadratic("Quadra", init="preserve")
    quadratic = qcompile.transform(model, preserve, example_inputs=inputs)
    seconds = time.perf_counter() - start
    report = quadratic.qcompile_report
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, quadratic)]
    again = explain(quadratic, preserve, example_inputs=inputs)
    traced = next((note for note in report.notes if note.startswith("traced by")), "not traced")
    return Row(
        model=name,
        rewritten=len(report.rewritten),
        skipped=len(report.skipped),
        tracer=traced.removeprefix("traced by "),
        parameters_before=sizes[0],
        parameters_after=sizes[1],
        max_difference=float((call(quadratic, inputs) - before).abs().max()),
        second_run_modified=again.modified,
        output_layer=", ".join(entry.name for entry in found),
        seconds=round(seconds, 2),
    )


def draw(rows: list[Row]) -> Table:
    """Lay the rows out for a terminal."""
    table = Table(title="qcompile.transform(model, Quadra, init='preserve')")
    heads = (
        "model",
        "rewritten",
        "skipped",
        "tracer",
        "parameters",
        "max |Δ|",
        "2nd run",
        "output",
    )
    for head in heads:
        table.add_column(head, justify="right" if head in heads[1:3] else "left")
    for row in rows:
        table.add_row(
            row.model,
            str(row.rewritten),
            str(row.skipped),
            row.tracer.removeprefix("torch.fx."),
            f"{row.parameters_before:,} → {row.parameters_after:,}",
            f"{row.max_difference:g}",
            "modified" if row.second_run_modified else "unchanged",
            row.output_layer,
        )
    return table


def bars(rows: list[Row]) -> list[dict[str, Any]]:
    """Compare with what the table has to show."""
    worst = max(row.max_difference for row in rows)
    unstable = sum(row.second_run_modified for row in rows)
    missing = sum(not row.output_layer or not row.rewritten for row in rows)
    checks = {
        "largest difference of outputs": worst,
        "models that a second run modifies": unstable,
        "models with nothing rewritten or no output layer found": missing,
    }
    return [{"name": n, "value": v, "target": 0, "ok": v == 0} for n, v in checks.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four image models instead of twelve")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    image: Inputs = (torch.randn(1, 3, 224, 224),)
    tokens: Inputs = {"input_ids": torch.arange(1, 17)[None]}
    images = image_models(options.quick)
    jobs = [(name, make, image) for name, make in images.items()]
    jobs += [(name, make, tokens) for name, make in language_models().items()]
    stderr = Console(stderr=True)
    progress = track(jobs, "transforming", console=stderr, disable=not stderr.is_terminal)
    rows = [examine(*job) for job in progress]
    Console(width=160 if not sys.stdout.isatty() else None).print(draw(rows))
    results = bars(rows)
    for bar in results:
        print(f"{'ok' if bar['ok'] else 'FAILED'}: {bar['name']} {bar['value']:g}, target 0")
    packages = ("torch", "torchvision", "timm", "transformers")
    return record(options.json, packages, rows, results)


if __name__ == "__main__":
    sys.exit(main())
