"""``qcompile memory``: what a training step takes, predicted and measured."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rich.table import Table

from qcompile.cli.output import print_json, print_pairs, progress_console, result_console
from qcompile.cli.sources import example_inputs
from qcompile.errors import ConfigurationError

if TYPE_CHECKING:
    from qcompile.memory import LayerMemory, MemoryProfile


def run(options: argparse.Namespace) -> int:
    """Predict, measure where asked, and print."""
    if options.source.lower().endswith(".onnx"):
        raise ConfigurationError(
            f"{options.source}: an ONNX file is not trained; name the torch model that it was "
            "made from."
        )
    if not options.input:
        raise ConfigurationError(
            "describe each example input with --input, for example --input 32x3x224x224: their "
            "sizes decide what a step takes."
        )
    with progress_console().status(f"following a training step of {options.source} …") as status:
        profile = _profile(options, status.update)
    if options.json:
        print_json(profile.to_dict())
    else:
        _print(profile)
        if options.timeline:
            result_console().print(f"\nwritten: {options.timeline}", markup=False)
    return 0


def _profile(options: argparse.Namespace, progress: Any) -> MemoryProfile:
    from qcompile.memory import Source, memory_profile
    from qcompile.memory.picture import check_picture, draw

    if options.timeline:
        check_picture(options.timeline)
        if options.measure_only:
            raise ConfigurationError("--timeline shows the prediction; leave out --measure-only.")
    if options.measure or options.measure_only:
        progress(f"following and measuring training steps of {options.source} …")
    target = example_inputs([options.target]) if options.target else None
    profile = memory_profile(
        _load(options),
        example_inputs(options.input),
        target=None if target is None else target[0],
        optimizer=options.optimizer,
        loss=options.loss,
        autocast=options.autocast,
        dtype=options.dtype,
        batch_size=options.batch_size,
        device=options.device,
        predict=not options.measure_only,
        measure=options.measure or options.measure_only,
        source=Source(options.source, options.allow_pickle),
    )
    if options.timeline:
        draw(profile, options.timeline)
    return profile


def _load(options: argparse.Namespace) -> Any:
    import torch

    from qcompile.exporter.reading import load_source

    model = load_source(options.source, allow_pickle=options.allow_pickle)
    return model.module() if isinstance(model, torch.export.ExportedProgram) else model


def _print(profile: MemoryProfile) -> None:
    from qcompile.memory import format_bytes

    console = result_console()
    print_pairs(
        {
            "model": profile.model,
            "device": profile.device,
            **{name: value for name, value in profile.step.items() if value is not None},
        }
    )
    if profile.layers:
        console.print()
        console.print(_layers(profile.layers), markup=False)
    console.print()
    console.print(_peaks(profile), markup=False)
    if profile.predicted is not None:
        at = profile.predicted
        place = f"{at.layer or 'the model itself'}, {at.operation}"
        console.print(f"predicted peak: in the {at.phase} phase, {place}", markup=False)
    if profile.measured is not None and profile.measured.resident is not None:
        grown = format_bytes(profile.measured.resident)
        console.print(f"the measured process grew by {grown}, libraries included", markup=False)
    for note in profile.notes:
        console.print(f"note: {note}", markup=False)


def _layers(layers: list[LayerMemory]) -> Table:
    from qcompile.memory import format_bytes

    table = Table(box=None, header_style="bold")
    table.add_column("module", overflow="fold")
    table.add_column("type", overflow="fold")
    for heading in ("parameters", "output", "saves for backward", "share"):
        table.add_column(heading, justify="right")
    for layer in layers:
        shape = layer.output_shape
        table.add_row(
            layer.name or "(the model itself)",
            layer.kind,
            f"{layer.parameters:,}" if layer.parameters else "",
            "" if shape is None else "×".join(map(str, shape)),
            format_bytes(layer.saved_bytes) if layer.saved_bytes else "",
            f"{layer.share:.1%}" if layer.saved_bytes else "",
        )
    return table


def _peaks(profile: MemoryProfile) -> Table:
    """Lay out the predicted peak beside the measured one."""
    from qcompile.memory import format_bytes

    predicted, measured = profile.predicted, profile.measured
    table = Table(box=None, header_style="bold")
    table.add_column("at the peak")
    for heading in ("predicted", "measured", "predicted / measured"):
        table.add_column(heading, justify="right")
    if predicted is not None:
        for name, size in predicted.breakdown.items():
            table.add_row(name, format_bytes(size))
    ratio = "" if profile.error is None else f"{1 + profile.error:.3f}"
    table.add_row(
        "all",
        "" if predicted is None else format_bytes(predicted.total),
        "" if measured is None else format_bytes(measured.peak),
        ratio,
        style="bold",
    )
    return table
