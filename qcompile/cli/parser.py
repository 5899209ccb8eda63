"""Commands and options; nothing here imports what the commands need to run."""

from __future__ import annotations

import argparse

from qcompile import __version__
from qcompile.cli.train_options import add_train_options
from qcompile.config import (
    ACTIVATIONS,
    FAMILIES,
    FORMS,
    INITS,
    LOSSES,
    MEMORY_LEVELS,
    NORMS,
    OPTIMIZERS,
)

SOURCE_HELP = (
    "model.onnx, model.pt2 (torch.export), package.module:callable that returns a torch module, "
    "or, with --allow-pickle, a pickled module (.pt, .pth)"
)
SHAPE_HELP = (
    "shape of one example input, dimensions joined by 'x', with the type behind a colon where "
    "it is not float32: 1x3x224x224, 2x16:int64; once for each input"
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="qcompile",
        description="Quadratic neurons and LSH-sparse output layers: torch in, plain ONNX out.",
    )
    parser.add_argument("--version", action="version", version=f"qcompile {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_export(commands)
    _add_transform(commands)
    _add_inspect(commands)
    _add_analyze(commands)
    _add_memory(commands)
    _add_env(commands)
    _add_passes(commands)
    return parser


def _command(commands, name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    # The module of the same name runs the command; "inspect" would shadow Python's own.
    parser.set_defaults(module=f"{name}_command")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument(
        "--input", action="append", default=[], metavar="SHAPE[:TYPE]", help=SHAPE_HELP
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="load a pickled module, which can run any code: only for files that you trust",
    )


def _add_quadratic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quadratic", metavar="FORM", help=f"substitute quadratic neurons: {', '.join(FORMS)}"
    )
    parser.add_argument(
        "--init",
        choices=INITS,
        default="auto",
        help="preserve: compute what the layer computed; kaiming: start afresh; "
        "auto (default): preserve where the form can",
    )
    parser.add_argument(
        "--batch-norm",
        choices=NORMS,
        help="the batch norm behind a quadratic layer: none (default) leaves it where it is; outer "
        "moves it into a quadratic block; branch gives each branch one; both does both",
    )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="the activation behind a quadratic layer (default keep)",
    )
    parser.add_argument(
        "--where", action="append", metavar="GLOB", help="only modules whose names match"
    )
    parser.add_argument(
        "--exclude", action="append", metavar="GLOB", help="not the modules whose names match"
    )
    parser.add_argument(
        "--sparse-output",
        nargs="?",
        const="dwta",
        choices=FAMILIES,
        help="substitute an LSH-sparse output layer of this hash family (default dwta)",
    )


def _add_memory_levels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory",
        choices=("auto", *map(str, MEMORY_LEVELS)),
        help="what training keeps of quadratic layers for the backward pass: 0 all, 1 less, 3 "
        "least; auto chooses for each layer what fits --memory-budget",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="BYTES",
        help="of a training step by plain SGD on --input, for --memory auto: 4GiB, 500MB",
    )


def _add_min_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-outputs",
        type=int,
        default=4096,
        metavar="N",
        help="smallest layer that counts as huge (default 4096)",
    )


def _add_train(commands) -> None:
    parser = _command(
        commands, "train", "Train a network with a huge output layer on sparse data, and export it."
    )
    add_train_options(parser)


def _add_export(commands) -> None:
    parser = _command(commands, "export", "Write an ONNX file whose huge output layer is fast.")
    _add_source(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="default: SOURCE with the ending .qcompile.onnx"
    )
    parser.add_argument(
        "--triton-repository",
        metavar="DIR",
        help="write a model repository for Triton Inference Server instead of one file: "
        "DIR/NAME/config.pbtxt, the plugin and DIR/NAME/1/model.onnx",
    )
    parser.add_argument(
        "--triton-root",
        metavar="PATH",
        help="what the server calls DIR, such as /models in a container (default: DIR)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="hand out the K best (scores, ids) instead of all scores",
    )
    _add_min_outputs(parser)
    parser.add_argument("--node", metavar="NAME", help="the output layer, where several are huge")
    parser.add_argument(
        "--inputs", metavar="FILE.npz", help="real inputs to verify with, one array an input"
    )
    parser.add_argument(
        "--recall",
        type=float,
        metavar="R",
        help="share of the K best that has to be found; takes the fastest setting that keeps it "
        "on the inputs of --calibrate",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE.npz",
        help="inputs of many rows to search and judge settings with, one array an input",
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="B", help="rows of --calibrate a call (default 1)"
    )
    parser.add_argument(
        "--guard",
        type=float,
        default=0.0,
        metavar="G",
        help="widen the search by G spreads for inputs unlike those of --calibrate (default 0)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the search (default 0)"
    )
    parser.add_argument(
        "--mode",
        choices=("exact", "cells", "lsh"),
        help="how the layer is searched; by default the fastest mode that keeps --recall, or exact",
    )
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        help="hash family of mode lsh (default: that of a sparse output layer, else dwta)",
    )
    parser.add_argument("--tables", type=int, metavar="L", help="hash tables of mode lsh")
    parser.add_argument("--hashes", type=int, metavar="K", help="hash codes of one key in mode lsh")
    parser.add_argument("--bucket", type=int, metavar="ROWS", help="rows of a bucket in mode lsh")
    parser.add_argument(
        "--rescore",
        choices=("fp32", "bf16", "none"),
        default="fp32",
        help="what a layer of --top-k keeps of its rows: smaller, and exact for rounded rows "
        "(default fp32: as they are)",
    )


def _add_transform(commands) -> None:
    parser = _command(
        commands, "transform", "Substitute layers of a torch model and report each one."
    )
    _add_source(parser)
    _add_quadratic(parser)
    _add_memory_levels(parser)
    parser.add_argument(
        "--fuse",
        action="store_true",
        help="compute products of linear layers, such as gated layers, by one operator each, which "
        "has kernels on GPUs",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=".safetensors for the weights, .pt2 for the exported program, .onnx for the model; "
        "without it only the report is made",
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail where nothing matches a selector"
    )


def _add_inspect(commands) -> None:
    parser = _command(
        commands,
        "inspect",
        "Tell what is in a model, which layers would be rewritten, and why not the others.",
    )
    _add_source(parser)
    _add_quadratic(parser)
    _add_min_outputs(parser)


def _add_analyze(commands) -> None:
    parser = _command(
        commands,
        "analyze",
        "Tell what a network's layers return, weigh and learn: distributions, quadratic shares, "
        "dead and exploding units.",
    )
    _add_source(parser)
    parser.add_argument(
        "--data",
        metavar="FILE.npz",
        help="inputs, one array an input in the order of forward, and perhaps 'labels', which "
        "give gradients of the cross-entropy (default: random inputs after --input)",
    )
    parser.add_argument(
        "--batch", type=int, default=64, metavar="B", help="rows of --data a call (default 64)"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=1e4,
        metavar="X",
        help="absolute output beyond which a unit counts as exploding (default 1e4)",
    )
    parser.add_argument("--html", metavar="FILE", help="write one page with tables and pictures")
    parser.add_argument("--tensorboard", metavar="DIR", help="write histograms for TensorBoard")


def _add_memory(commands) -> None:
    parser = _command(
        commands, "memory", "Tell what a training step takes, predicted without running it."
    )
    _add_source(parser)
    parser.add_argument(
        "--target",
        metavar="SHAPE",
        help="shape of the labels of a model with a sparse output layer, as of --input: 32:int64",
    )
    parser.add_argument(
        "--optimizer", default="sgd", metavar="NAME", help=f"{', '.join(OPTIMIZERS)} (default sgd)"
    )
    parser.add_argument(
        "--loss",
        default="auto",
        metavar="NAME",
        help=f"{', '.join(LOSSES)}; auto (default): the model's own, else cross-entropy of "
        "[batch, classes], else the mean square",
    )
    parser.add_argument("--autocast", metavar="TYPE", help="compute in bfloat16, say, by autocast")
    parser.add_argument("--dtype", metavar="TYPE", help="cast model and inputs first")
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="examples, in place of those of --input"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--measure", action="store_true", help="take real steps, too, in a process of their own"
    )
    parser.add_argument(
        "--measure-only",
        action="store_true",
        help="do not predict; for models that cannot be followed without numbers",
    )
    parser.add_argument(
        "--timeline", metavar="FILE.png", help="draw live bytes over the step (needs matplotlib)"
    )


def _add_env(commands) -> None:
    _command(commands, "env", "Tell versions, processor and plugin, for a bug report.")


def _add_passes(commands) -> None:
    _command(commands, "passes", "List the passes over torch modules and ONNX graphs.")
