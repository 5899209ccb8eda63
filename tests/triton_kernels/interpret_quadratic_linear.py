"""Runs the kernels of quadratic linear layers in Triton's interpreter, against float64.

TRITON_INTERPRET=1 python tests/triton_kernels/interpret_quadratic_linear.py          # a choice
TRITON_INTERPRET=1 python tests/triton_kernels/interpret_quadratic_linear.py --full   # all
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qcompile.triton_kernels.quadratic_linear import launch
from qcompile.triton_kernels.quadratic_linear.forms import ACTIVATIONS, FORMS
from qcompile.triton_kernels.quadratic_linear.problem import Problem
from qcompile.triton_kernels.quadratic_linear.reference import quadratic_linear_reference
from qcompile.triton_kernels.quadratic_linear.strategies import Strategy, backward, forward

# The interpreter truncates to bf16 where hardware rounds, hence twice its unit. A result has passed
# two roundings: of what the branches send, and its own.
UNITS = {torch.float32: 2e-6, torch.float16: 2 * 2**-10, torch.bfloat16: 4 * 2**-8}
STRATEGIES = ("fused/smallest/own", "fused/largest/library", "concat")
LAYOUTS = ("rows", "columns", "gaps")
SHAPES = ((1, 1, 1), (5, 7, 3), (37, 70, 33), (130, 65, 70))
GUARD = 7.0
MARGIN = 64


@dataclass(frozen=True)
class Case:
    """One run: what is computed, of which M, K, N, type and layout, and how."""

    form: str
    gate: str
    activation: str
    shape: tuple[int, int, int] = (37, 70, 33)
    dtype: torch.dtype = torch.float32
    layout: str = "rows"
    strategy: str = STRATEGIES[0]
    biases: str = "abc"


CHOICE = (
    Case("T2", "none", "none", (130, 65, 70)),
    Case("T2", "none", "silu", layout="columns", dtype=torch.float16),
    Case("T2", "none", "tanh", strategy="concat"),
    Case("T3", "none", "none", layout="gaps", dtype=torch.bfloat16, biases=""),
    Case("T3", "none", "sigmoid", strategy="concat"),
    Case("T4", "silu", "none", (130, 65, 70), biases="b"),
    Case("T4", "gelu", "none", layout="columns", dtype=torch.bfloat16, biases=""),
    Case("T4", "relu", "none", layout="gaps", strategy="concat"),
    Case("T4", "none", "none", (1, 1, 1)),
    Case("T4", "gelu_tanh", "none", strategy=STRATEGIES[1], dtype=torch.float16),
    Case("T2_4", "none", "gelu", (5, 7, 3), layout="columns"),
    Case("T2_4", "tanh", "none", layout="gaps", dtype=torch.bfloat16, biases="ac"),
    Case("T2_4", "sigmoid", "silu", strategy=STRATEGIES[1]),
    Case("T2_4", "none", "gelu_tanh", strategy="concat", dtype=torch.float16),
    Case("Quadra", "none", "none", (130, 65, 70), dtype=torch.float16),
    Case("Quadra", "none", "relu", layout="columns"),
    Case("Quadra", "gelu_tanh", "tanh", layout="gaps"),
    Case("Quadra", "silu", "gelu", strategy=STRATEGIES[1], biases="c"),
    Case("Quadra", "none", "none", strategy="concat", dtype=torch.bfloat16),
    Case("Quadra", "gelu", "sigmoid", strategy="concat", layout="columns"),
)
"""Each form, function, type, layout and strategy at least once."""


def every_case() -> Iterator[Case]:
    """Yield all combinations that differ in more than what a kernel never sees."""
    functions = list(itertools.product(ACTIVATIONS, ACTIVATIONS))
    for form, (gate, activation) in itertools.product(FORMS, functions):
        if gate != "none" and len(set(FORMS[form].factors)) < 2:
            continue
        for strategy, dtype in itertools.product(STRATEGIES, UNITS):
            # Of products rounded to half precision, other signs reach a relu.
            if "relu" in (gate, activation) and dtype != torch.float32:
                continue
            yield Case(form, gate, activation, dtype=dtype, strategy=strategy)
    for form, shape, layout in itertools.product(FORMS, SHAPES, LAYOUTS):
        for strategy, biases in itertools.product(STRATEGIES, ("", "a", "abc")):
            yield Case(form, "none", "silu", shape, torch.float32, layout, strategy, biases)
            yield Case(form, "none", "none", shape, torch.float32, layout, strategy, biases)


class Guarded(TorchDispatchMode):
    """Puts a margin around all memory that is asked for, which nobody may write to."""

    def __init__(self) -> None:
        super().__init__()
        self.margins: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.name() not in ("aten::empty.memory_format", "aten::new_empty"):
            return made
        count = made.numel()
        storage = torch.full((count + 2 * MARGIN,), GUARD, dtype=made.dtype)
        self.margins += [storage[:MARGIN], storage[MARGIN + count :]]
        return storage[MARGIN : MARGIN + count].view(made.shape)

    def check(self) -> None:
        assert all((margin == GUARD).all() for margin in self.margins)


def laid_out(rows: int, columns: int, dtype: torch.dtype, layout: str, scale: float) -> Any:
    """Return random numbers within storage that is NaN elsewhere."""
    values = (torch.randn(rows, columns) * scale).to(dtype)
    if layout == "columns":
        return torch.full((columns, rows + 3), math.nan, dtype=dtype).t()[:rows].copy_(values)
    step = 2 if layout == "gaps" else 1
    storage = torch.full((rows + 2, step * columns + 3), math.nan, dtype=dtype)
    return storage[1 : rows + 1, 1 : step * columns + 1 : step].copy_(values)


def strategy_of(case: Case) -> Strategy:
    """Read the strategy's name, with ``smallest`` and ``largest`` in place of a tile."""
    largest, smallest = ("64x64x32x8", "32x32x32x4")
    if case.dtype != torch.float32:
        largest, smallest = ("128x64x32x8", "64x32x64x4")
    name = case.strategy.replace("smallest", smallest).replace("largest", largest)
    return Strategy.parse(name)


def check(case: Case) -> None:
    """Compare output and all gradients with float64."""
    (rows, depth, columns), dtype = case.shape, case.dtype
    letters = FORMS[case.form].letters
    options = (case.form, case.gate, case.activation)
    x = laid_out(rows, depth, dtype, case.layout, 1.0)
    weights = {x: laid_out(columns, depth, dtype, case.layout, depth**-0.5) for x in letters}
    given = {x: laid_out(columns, 1, dtype, case.layout, 1.0)[:, 0] for x in letters}
    biases = {x: given[x] if x in case.biases else None for x in letters}
    grad = laid_out(rows, columns, dtype, case.layout, 1.0)
    names = {"x": x} | {f"weight_{x}": w for x, w in weights.items()}
    names |= {f"bias_{x}": b for x, b in biases.items() if b is not None}

    exact = {name: tensor.double().requires_grad_() for name, tensor in names.items()}
    y = quadratic_linear_reference(
        exact["x"],
        {x: exact[f"weight_{x}"] for x in letters},
        {x: exact.get(f"bias_{x}") for x in letters},
        *options,
    )
    wanted = dict(zip(exact, torch.autograd.grad(y, exact.values(), grad.double()), strict=True))
    wanted["y"] = y.detach()

    problem, strategy = Problem(x, weights, biases, *options), strategy_of(case)
    with Guarded() as guarded:
        output, *kept = forward(problem, strategy, True)
        found = backward(problem, grad, (kept[0], kept[1]), strategy, frozenset(names))
    guarded.check()
    found["y"] = output
    assert found.keys() == wanted.keys(), case
    for name, value in wanted.items():
        got, scale = found[name], max(1.0, float(value.abs().max()))
        assert got.dtype == dtype and got.shape == value.shape, (case, name)
        error = float((got.double() - value).abs().max()) / scale
        assert error <= UNITS[dtype], (case, name, error)


def main() -> None:
    """Check a choice of cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every case")
    assert launch.INTERPRETED, "set TRITON_INTERPRET=1"
    torch.manual_seed(0)
    cases = list(every_case()) if parser.parse_args().full else CHOICE
    for case in cases:
        check(case)
    print(f"{len(cases)} cases checked")


if __name__ == "__main__":
    main()
