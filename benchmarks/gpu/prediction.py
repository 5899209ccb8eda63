"""What the ways of computing a layer should cost on a GPU that is not here: by a model alone.

A kernel takes as long as the scarcer of memory and arithmetic lets it. Every tensor that it reads
or writes counts once, whatever stays in the L2 cache; weights and launches count nothing. Rates are
those that large copies and products reach, and a share of the latter for products of our own
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from gpu.linear import LinearCase, linear_cases
from gpu.roofline import Ceilings, Work
from qcompile.triton_kernels.quadratic_linear.forms import FORMS
from qcompile.triton_kernels.quadratic_linear.tiles import NARROW

__all__ = ["DEVICES", "OWN_SHARE", "predicted", "show_predictions"]

DEVICES = {
    "H100": Ceilings(bytes_per_ms=3.0e9, operations_per_ms=650e9),
    "H200": Ceilings(bytes_per_ms=4.3e9, operations_per_ms=650e9),
}
"""Nine tenths of the memory's rate on paper, and what bfloat16 products of large matrices reach."""

OWN_SHARE = 0.75
"""Share of the library's rate of products that kernels of our own are taken to reach."""


@dataclass(frozen=True)
class _Step:
    """One kernel: tensors of [M, K] and of [M, N] that it moves, products, who computes them."""

    deep: float
    wide: float
    products: float = 0
    own: bool = False


def _compiled(branches: int, factors: int, training: bool) -> list[_Step]:
    """A library product a branch, and what is element-wise in one kernel a pass."""
    steps = [_Step(1, 1, 1)] * branches + [_Step(0, branches + 1)]
    if not training:
        return steps
    steps.append(_Step(0, 1 + 2 * factors))  # reads gradient and factors, writes their gradients
    steps += [_Step(1, 1, 1)] + [_Step(2, 1, 1)] * (branches - 1)  # sums of x's gradients in place
    return steps + [_Step(1, 1, 1)] * branches


def _library(branches: int, factors: int, training: bool) -> list[_Step]:
    steps = [_Step(1, 1, branches, own=True)]
    if not training:
        return steps
    added = branches - factors
    steps.append(_Step(1, 1 + factors, factors, own=True))
    steps += [_Step(1, factors, factors)] + [_Step(2, 1, 1)] * added
    return steps + [_Step(1, 1, 1)] * branches


def _kept(branches: int, factors: int, training: bool) -> list[_Step]:
    if not training:
        return _library(branches, factors, False)
    forward = _Step(1, 1 + factors, branches, own=True)
    return [forward] + [_Step(1, 1 + factors, branches, own=True)] * 2


def _narrow(branches: int, factors: int, training: bool) -> list[_Step]:
    steps = [_Step(1, 1, branches, own=True)]
    if not training:
        return steps
    again = branches + factors
    return [*steps, _Step(2, 1, again, own=True), _Step(1, 1, again, own=True)]


WAYS = {
    "torch.compile": _compiled,
    "library": _library,
    "kept": _kept,
    "narrow": _narrow,
}


def predicted(case: LinearCase, training: bool, ceilings: Ceilings) -> dict[str, float]:
    """Return the milliseconds of each way, ``floor`` among them."""
    form = FORMS[case.form]
    branches, factors = len(form.letters), len(set(form.factors))
    found = {"floor": case.work(training).floor_ms(ceilings)}
    for name, steps in WAYS.items():
        if name == "narrow" and case.inputs > NARROW:
            continue
        found[name] = sum(
            _milliseconds(step, case, ceilings) for step in steps(branches, factors, training)
        )
    return found


def _milliseconds(step: _Step, case: LinearCase, ceilings: Ceilings) -> float:
    size = case.dtype.itemsize
    moved = case.rows * (step.deep * case.inputs + step.wide * case.outputs) * size
    operations = 2 * step.products * case.rows * case.inputs * case.outputs
    operations /= OWN_SHARE if step.own else 1
    return Work(int(operations), int(moved)).floor_ms(ceilings)


def show_predictions(devices: Mapping[str, Ceilings] = DEVICES) -> None:
    """Print a table for each device: ms of torch.compile, and how much faster the others are."""
    console = Console(width=110)
    for name, ceilings in devices.items():
        table = Table(title=f"{name}, predicted, not measured", title_justify="left")
        table.add_column("layer")
        for column in ("torch.compile, ms", "library", "kept", "narrow", "at most"):
            table.add_column(column, justify="right")
        for training in (False, True):
            for case in linear_cases(False):
                found = predicted(case, training, ceilings)
                theirs = found["torch.compile"]
                ours = [found.get(way) for way in ("library", "kept", "narrow", "floor")]
                size = f"{case.rows}×{case.inputs}×{case.outputs}"
                passes = "forward + backward" if training else "forward"
                table.add_row(
                    f"{case.name}, {size}, {passes}",
                    f"{theirs:.3f}",
                    *("" if ms is None else f"{theirs / ms:.2f}" for ms in ours),
                )
        console.print(table)
