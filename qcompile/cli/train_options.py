"""Options of ``qcompile train``; nothing here imports what training needs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from qcompile.config import FAMILIES, FORMS, LSH, MODES, POLICIES, SAMPLINGS
from qcompile.training.config import BUILT_IN, OPTIMIZERS, SCHEDULES, STORAGES, TrainConfig

__all__ = ["FORMATS", "add_train_options", "train_config"]

FORMATS = ("auto", "xmc", "split", "libsvm", "npz")

_DATA = (
    "file of examples: XMC text, libsvm text, split files (that of the features), or npz CSR; or "
    f"the name of a built-in data set with its own test data: {', '.join(BUILT_IN)}"
)
_OUTPUT_LAYER = {
    "mode": "mode",
    "family": "family",
    "tables": "tables",
    "hashes": "hashes",
    "bucket": "bucket",
    "policy": "policy",
    "sampling": "sampling",
    "threshold": "threshold",
    "budget": "active",
    "negatives": "negatives",
    "rehash": "rehash",
    "rehash_decay": "rehash_decay",
    "rehash_spread": "spread",
    "rehash_renew": "renew",
    "seed": "seed",
}
_PLAIN = (
    *("hidden", "quadratic", "storage", "optimizer", "lr", "input_lr", "schedule"),
    *("weight_decay", "epochs", "batch", "threads", "seed", "evaluate_every"),
    *("checkpoint_minutes", "save_point_steps", "top_k", "recall"),
)


def train_config(options: argparse.Namespace, base: TrainConfig) -> TrainConfig:
    """Return ``base`` with the values that were given on the command line.

    Raises:
        ConfigurationError: a value is out of range.
    """
    given = vars(options)
    layer: dict[str, Any] = {
        field: given[name] for name, field in _OUTPUT_LAYER.items() if name in given
    }
    if "rehash_changed" in given:
        layer["incremental"] = True
    if "asynchronous" in given:
        layer["accumulation"] = "async"
    plain = {name: given[name] for name in _PLAIN if name in given}
    return replace(base, sparse_output=replace(base.sparse_output, **layer), **plain)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; those of the network and its training appear only where they are given."""
    parser.add_argument("data", metavar="DATA", nargs="?", help=_DATA)
    _add_data(parser.add_argument_group("data"))
    _add_network(_Group(parser, "network"))
    _add_output_layer(_Group(parser, "output layer"))
    _add_optimisation(_Group(parser, "optimisation"))
    _add_run(parser, _Group(parser, "run"))


class _Group:
    """A group of options whose defaults are a configuration's, and not entered when not given."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self._group = parser.add_argument_group(title)

    def add(self, name: str, text: str, default: Any = None, **settings: Any) -> None:
        if default is not None:
            text = f"{text} (default {default})"
        self._group.add_argument(name, default=argparse.SUPPRESS, help=text, **settings)

    def number(self, name: str, kind: type, text: str, default: Any = None) -> None:
        self.add(name, text, default, type=kind, metavar="N" if kind is int else "X")

    def choice(self, name: str, known: tuple[str, ...], text: str, default: Any = None) -> None:
        self.add(name, text, default, choices=known)


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected whole numbers joined by commas, as in 128 or 256,128"
        ) from None


def _add_data(group: Any) -> None:
    group.add_argument(
        "--labels", metavar="FILE", help="file of the labels, where they are apart (split, npz)"
    )
    group.add_argument(
        "--test", metavar="DATA", help="what to evaluate, in the same format (default: nothing)"
    )
    group.add_argument("--test-labels", metavar="FILE", help="its labels, where they are apart")
    group.add_argument(
        "--format", choices=FORMATS, help="of DATA and --test (default: told by the first line)"
    )


def _add_network(group: _Group) -> None:
    base = TrainConfig()
    widths = ",".join(map(str, base.hidden))
    group.add(
        "--hidden", "widths of the hidden layers", widths, type=_widths, metavar="WIDTH[,WIDTH]"
    )
    group.add(
        "--quadratic",
        "quadratic neurons in the hidden layers: "
        + ", ".join(form for form in FORMS if form not in ("T1", "T1L", "T1_2")),
        metavar="FORM",
    )
    group.choice(
        "--storage",
        STORAGES,
        "of the weights and moments of the first and the last layer; bf16 halves them",
        base.storage,
    )


def _add_output_layer(group: _Group) -> None:
    base = LSH()
    group.choice(
        "--mode",
        MODES,
        "which outputs a step computes: labels, hashed and random ones (lsh); labels and random "
        "ones (sampled); all (full)",
        base.mode,
    )
    group.choice("--family", FAMILIES, "hash family", base.family)
    group.number("--tables", int, "L, hash tables", base.tables)
    group.number("--hashes", int, "K, codes of a key", "some forty outputs a bucket")
    group.number("--bucket", int, "outputs that a bucket holds", base.bucket)
    group.choice("--policy", POLICIES, "what a full bucket does with one more", base.policy)
    group.choice("--sampling", SAMPLINGS, "which colliding outputs are active", base.sampling)
    group.number("--threshold", int, "collisions that threshold sampling asks for", base.threshold)
    group.number("--budget", int, "active outputs of an example, labels included", base.active)
    group.number("--negatives", int, "random outputs, shared by a batch", base.negatives)
    group.number("--rehash", int, "steps before the first re-hash", base.rehash)
    group.number(
        "--rehash-decay",
        float,
        "re-hash i comes N·exp(X·i) steps after the one before",
        base.rehash_decay,
    )
    group.number("--rehash-spread", int, "steps over which a re-hash is spread", base.spread)
    group.number("--rehash-renew", int, "new hash functions every N re-hashes", base.renew)
    group.add(
        "--rehash-changed", "re-hash changed outputs alone; takes more memory", action="store_true"
    )
    group.add(
        "--async",
        "lock-free accumulation, one example a thread; not reproducible",
        action="store_true",
        dest="asynchronous",
    )


def _add_optimisation(group: _Group) -> None:
    base = TrainConfig()
    group.number("--epochs", int, "passes over the data", base.epochs)
    group.number("--batch", int, "examples of a step", base.batch)
    group.number("--lr", float, "learning rate", base.lr)
    group.number("--input-lr", float, "that of the first layer", "that of --lr")
    group.choice(
        "--schedule",
        SCHEDULES,
        "of the learning rate: linear goes down to a hundredth at the end",
        base.schedule,
    )
    group.choice("--optimizer", OPTIMIZERS, "how weights are updated", base.optimizer)
    group.number("--weight-decay", float, "as the optimizer defines it", base.weight_decay)
    group.number("--seed", int, "of weights, order and sampling", base.seed)


def _add_run(parser: argparse.ArgumentParser, group: _Group) -> None:
    base = TrainConfig()
    group.number("--threads", int, "threads (default: those of torch)")
    group.number("--evaluate-every", int, "epochs; 0: at the end", base.evaluate_every)
    group.number("--top-k", int, "answers that the exported model hands out", base.top_k)
    group.number(
        "--recall",
        float,
        "share of them that it has to find; takes the fastest search that keeps it on --test "
        "(default: all)",
    )
    group.number(
        "--checkpoint-minutes",
        float,
        "minutes between checkpoints; the ends of epochs are saved in any case",
        f"{base.checkpoint_minutes:g}",
    )
    group.number(
        "--save-point-steps",
        int,
        "steps between points at which a checkpoint may be written",
        base.save_point_steps,
    )
    run = parser.add_argument_group("output")
    run.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="folder for checkpoints, model.onnx and result.json (default: runs/NAME-OF-DATA)",
    )
    run.add_argument(
        "--resume",
        metavar="DIR",
        nargs="?",
        const="",
        help="go on from the newest checkpoint in DIR, by default that of --output, with the "
        "data and options of then; given ones are checked",
    )
    run.add_argument("--tensorboard", metavar="DIR", help="write event files for TensorBoard")
    run.add_argument("--no-export", action="store_true", help="leave out model.onnx")
    run.add_argument("--quiet", action="store_true", help="no progress")
