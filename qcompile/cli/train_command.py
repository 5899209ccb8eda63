"""``qcompile train``: train a network with a huge output layer, and export it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.cli.calibration_table import recall_figures
from qcompile.cli.output import print_json, print_pairs, progress_console
from qcompile.cli.train_options import train_config
from qcompile.errors import (
    CheckpointError,
    ConfigurationError,
    ExportError,
    QCompileError,
    QCompileWarning,
)
from qcompile.training.config import TrainConfig

if TYPE_CHECKING:
    from qcompile.data.sparse_dataset import SparseDataset
    from qcompile.distributed import Group
    from qcompile.training import Observer, TrainResult
    from qcompile.training.sources import Sources

_INTERRUPTED = 130  # what shells call a command that Ctrl-C ended
_SOURCES = ("data", "labels", "test", "test_labels", "format")
_RUN, _RESULT, _MODEL = "run.json", "result.json", "model.onnx"
_CHECKPOINTS = "checkpoints"
_MOST_CALIBRATION = 20_000  # test examples; more would only take longer


@dataclass(frozen=True)
class _Request:
    """What to do: data, configuration, folder, and whether to go on."""

    sources: Sources
    config: TrainConfig
    folder: Path
    resume: bool


def run(options: argparse.Namespace) -> int:
    """Train; the status is 130 where a signal ended the run, which has saved itself then."""
    from qcompile.distributed import ranks

    try:
        with ranks() as group, _warnings(group.rank == 0):
            return _run(options, _request(options), group)
    except KeyboardInterrupt:
        print("qcompile train: ended at once; the last checkpoint stands", file=sys.stderr)
        return _INTERRUPTED


def _request(options: argparse.Namespace) -> _Request:
    """Put together what the command line says and, to go on, what the run was begun with."""
    from qcompile.training.sources import Sources

    given = {name: getattr(options, name) for name in _SOURCES if getattr(options, name)}
    if options.resume is None:
        if "data" not in given:
            raise ConfigurationError("name the training DATA, or a folder to --resume.")
        sources = Sources(**given)
        folder = Path(options.output or Path("runs") / sources.name)
        return _Request(sources.absolute(), train_config(options, TrainConfig()), folder, False)
    folder = _resumed_folder(options, given)
    begun = _read_run(folder)
    sources = Sources(**{**begun["sources"], **given})
    config = train_config(options, TrainConfig.from_dict(begun["config"]))
    return _Request(sources.absolute(), config, folder, True)


def _resumed_folder(options: argparse.Namespace, given: dict[str, str]) -> Path:
    from qcompile.training.sources import Sources

    if options.resume and options.output and Path(options.resume) != Path(options.output):
        raise ConfigurationError(
            "a resumed run goes on in its own folder: leave out --output, or name the same folder."
        )
    named = options.resume or options.output
    if not named and "data" not in given:
        raise ConfigurationError("name the folder of the run: --resume DIR.")
    return Path(named or Path("runs") / Sources(**given).name)


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / _RUN
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        return {"sources": dict(begun["sources"]), "config": dict(begun["config"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); name the folder that the run was given as --output."
        ) from error


def _run(options: argparse.Namespace, request: _Request, group: Group) -> int:
    from qcompile.distributed import after_first, agree, collect
    from qcompile.training.run import train
    from qcompile.training.sources import load_sources

    first = group.rank == 0
    observers = _observers(options) if first else []
    console = progress_console()
    console.quiet = options.quiet or not first
    agree(group, {"options": request.config.to_dict(), "data": asdict(request.sources)})
    console.print(f"reading {request.sources.data}", markup=False, soft_wrap=True)
    examples, test = after_first(group, lambda: load_sources(request.sources))
    console.print(_described(examples, test), markup=False, soft_wrap=True)
    if request.config.recall is not None and test is None:
        raise ConfigurationError("--recall has to be shown on test data: name them with --test.")
    if first:
        _write_run(request)
    result = train(
        request.config,
        examples,
        test,
        checkpoints=request.folder / _CHECKPOINTS,
        resume=request.resume,
        observers=observers,
        group=group,
    )
    status = 0 if result.interrupted is None else _INTERRUPTED
    exports = result.interrupted is None and not options.no_export
    if exports:
        collect(result.model, group)
    if not first:
        return status
    summary = {**result.to_dict(), "data": asdict(request.sources), "output": str(request.folder)}
    if exports:
        with console.status("exporting …"):
            summary["export"] = _export(result, examples, test, request)
    _write_json(request.folder / _RESULT, summary)
    _conclude(options, request, result, summary)
    return status


@contextmanager
def _warnings(first: bool) -> Iterator[None]:
    """Print our warnings, of one rank, with ``--quiet`` too."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
        if issubclass(category, QCompileWarning):
            print(f"qcompile train: warning: {message}", file=sys.stderr)
        else:
            others(message, category, *where, **how)

    with warnings.catch_warnings():
        warnings.simplefilter("always" if first else "ignore", QCompileWarning)
        warnings.showwarning = show
        yield


def _observers(options: argparse.Namespace) -> list[Observer]:
    from qcompile.training import LogLines, ProgressBar, TensorBoard

    observers: list[Observer] = []
    if options.tensorboard:
        observers.append(TensorBoard(Path(options.tensorboard)))
    if not options.quiet:
        console = progress_console()
        observers.append((ProgressBar if console.is_terminal else LogLines)(console))
    return observers


def _described(train: SparseDataset, test: SparseDataset | None) -> str:
    notes = {
        "without labels, skipped": len(train) - len(train.labelled_rows),
        "without features": train.report.get("empty_rows", 0),
        "entries named twice, summed": train.report.get("merged", 0),
    }
    noted = "; ".join(f"{count:,} {what}" for what, count in notes.items() if count)
    return (
        f"{len(train):,} examples"
        + (f" ({noted})" if noted else "")
        + f", {train.num_features:,} features, {train.num_labels:,} labels; "
        + ("nothing to evaluate" if test is None else f"{len(test):,} examples to evaluate")
    )


def _write_run(request: _Request) -> None:
    from qcompile.training.saving import refuse_other_runs

    if not request.resume:
        refuse_other_runs(request.folder / _CHECKPOINTS)
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{request.folder}: cannot be made: {error.strerror}; choose another --output."
        ) from error
    if not request.resume:
        content = {"sources": asdict(request.sources), "config": request.config.to_dict()}
        _write_json(request.folder / _RUN, content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}.") from error


def _export(
    result: TrainResult, examples: SparseDataset, test: SparseDataset | None, request: _Request
) -> dict[str, Any]:
    from qcompile.training.serving import export_classifier

    some = examples.batch(range(min(4, len(examples)))).features
    path = request.folder / _MODEL
    recall, calibration = request.config.recall, None
    if recall is not None and test is not None:
        calibration = test.batch(range(min(_MOST_CALIBRATION, len(test)))).features
    try:
        exported = export_classifier(
            result.model,
            path,
            some,
            top_k=request.config.top_k,
            recall=recall,
            calibration=calibration,
        )
    except QCompileError as error:
        raise ExportError(
            f"{error} The trained network is in {result.checkpoint}; once this is mended, qcompile "
            f"train --resume {request.folder} exports it."
        ) from error
    told = exported.to_dict()
    return {name: told[name] for name in ("path", "max_difference", "calibration")}


def _conclude(
    options: argparse.Namespace, request: _Request, result: TrainResult, summary: dict[str, Any]
) -> None:
    if options.json:
        print_json(summary)
    else:
        print_pairs(_figures(result, summary))
    if result.interrupted is not None:
        print(
            f"interrupted and saved; go on with: qcompile train --resume {request.folder}",
            file=sys.stderr,
        )
    elif "export" in summary and not options.json:
        print(f"next: qcompile inspect {summary['export']['path']}")


def _figures(result: TrainResult, summary: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "steps": f"{result.steps:,}",
        "seconds of training": f"{result.seconds:.1f}",
        "examples a second": f"{result.examples_per_second:,.0f}",
        "peak memory": f"{result.peak_memory / 1e6:,.0f} MB",
    }
    if result.ranks > 1:
        figures["ranks"] = result.ranks
        figures["bytes a rank sends a step"] = f"{result.bytes_per_step:,.0f}"
    for name, value in result.metrics.items():
        kind, _, k = name.partition("@")
        figures[kind] = f"{figures.get(kind, '')}  @{k} {value:.4f}".lstrip()
    figures["checkpoint"] = result.checkpoint
    if "export" in summary:
        figures["model"] = summary["export"]["path"]
        for name, choice in summary["export"]["calibration"].items():
            figures |= recall_figures(name, choice)
        figures["largest difference"] = f"{summary['export']['max_difference']:.2g}"
    return figures
