"""Runs the kernels of quadratic linear layers in Triton's interpreter, against float64.

TRITON_INTERPRET=1 python tests/triton_kernels/interpret_quadratic_linear.py          # a choice
TRITON_INTERPRET=1 python tests/triton_kernels/interpret_quadratic_linear.py --full   # all
"""

from __future__ import annotations

import argparse
import itertools
import math
import mmap
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
from qcompile.triton_kernels.quadratic_linear.tiles import is_narrow

# The interpreter truncates to bf16 where hardware rounds, hence twice its unit. A result has passed
# up to four roundings: of the products that are kept, of what the branches send, and its own.
UNITS = {torch.float32: 4e-6, torch.float16: 4 * 2**-10, torch.bfloat16: 8 * 2**-8}
STRATEGIES = (
    "fused/smallest/kept",
    "fused/largest/library",
    "fused/smallest/narrow",
    "concat",
    "apart",
)
LAYOUTS = ("rows", "columns", "gaps")
FAR = 1 << 29
"""A step through memory that two steps take past 2³¹ bytes, and five past 2³¹ elements."""
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
    Case("T4", "relu", "none", layout="gaps", strategy="apart"),
    Case("T4", "none", "none", (1, 1, 1)),
    Case("T4", "gelu_tanh", "none", strategy=STRATEGIES[1], dtype=torch.float16),
    Case("T4", "silu", "none", (37, 128, 70), torch.bfloat16, "columns", STRATEGIES[2], "ab"),
    Case("T2_4", "none", "gelu", (5, 7, 3), layout="columns"),
    Case("T2_4", "tanh", "none", layout="gaps", dtype=torch.bfloat16, biases="ac"),
    Case("T2_4", "sigmoid", "silu", strategy=STRATEGIES[1]),
    Case("T2_4", "none", "none", (70, 33, 65), torch.float16, "gaps", STRATEGIES[2]),
    Case("T2_4", "none", "gelu_tanh", strategy="concat", dtype=torch.float16),
    Case("Quadra", "none", "none", (130, 65, 70), dtype=torch.float16),
    Case("Quadra", "none", "relu", layout="columns"),
    Case("Quadra", "gelu_tanh", "tanh", layout="gaps"),
    Case("Quadra", "silu", "gelu", strategy=STRATEGIES[1], biases="c"),
    Case("Quadra", "none", "none", strategy="concat", dtype=torch.bfloat16),
    Case("Quadra", "gelu", "sigmoid", strategy="concat", layout="columns"),
    Case("Quadra", "none", "silu", strategy="apart", dtype=torch.bfloat16),
    Case("Quadra", "none", "none", (5, 7, 3), torch.float16, strategy=STRATEGIES[2]),
    Case("T2", "none", "none", dtype=torch.bfloat16, strategy=STRATEGIES[2]),
    Case("T3", "none", "none", dtype=torch.float16, strategy=STRATEGIES[2], biases="a"),
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
            if strategy.endswith("narrow") and not is_narrow(dtype, 70, activation):
                continue
            yield Case(form, gate, activation, dtype=dtype, strategy=strategy)
    for form, shape, layout in itertools.product(FORMS, SHAPES, LAYOUTS):
        for strategy, biases in itertools.product(STRATEGIES, ("", "a", "abc")):
            if strategy.endswith("narrow"):
                yield Case(form, "none", "none", shape, torch.float16, layout, strategy, biases)
                continue
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
        found = run(problem, strategy, grad, frozenset(names))
    guarded.check()
    compare(found, wanted, dtype, case)


def run(
    problem: Problem, strategy: Strategy, grad: torch.Tensor, needs: frozenset[str]
) -> dict[str, torch.Tensor]:
    """Return the output and the gradients."""
    y, kept = forward(problem, strategy, True)
    return {"y": y, **backward(problem, grad, kept, strategy, needs)}


def compare(found: Any, wanted: Any, dtype: torch.dtype, what: Any) -> None:
    """Fail unless what was found is what is wanted, up to rounding."""
    assert found.keys() == wanted.keys(), what
    for name, value in wanted.items():
        got, scale = found[name], max(1.0, float(value.abs().max()))
        assert got.dtype == dtype and got.shape == value.shape, (what, name)
        error = float((got.double() - value).abs().max()) / scale
        assert error <= UNITS[dtype], (what, name, error)


def spread(values: torch.Tensor, strides: tuple[int, int]) -> torch.Tensor:
    """Return a copy whose elements lie far apart, in memory that is only promised."""
    (rows, columns), size = values.shape, values.element_size()
    count = (rows - 1) * strides[0] + (columns - 1) * strides[1] + 1
    no_reserve = 0x4000  # of Linux; Python knows its name from 3.13 on
    memory = mmap.mmap(-1, count * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    storage = torch.frombuffer(memory, dtype=values.dtype)
    return storage.as_strided((rows, columns), strides).copy_(values)


def check_far() -> None:
    """Rows or columns of every tensor so far apart that 32 bits cannot count the elements."""
    rows, depth, columns = 6, 5, 7
    plain = {"x": torch.randn(rows, depth), "grad": torch.randn(rows, columns)}
    plain |= {x: torch.randn(columns, depth) for x in "abc"}
    for name, turned in itertools.product(STRATEGIES[:3], (False, True)):
        dtype = torch.float16 if name.endswith("narrow") else torch.float32
        given = {key: value.to(dtype) for key, value in plain.items()}
        strategy = strategy_of(Case("Quadra", "none", "none", dtype=dtype, strategy=name))
        needs = frozenset(["x", "weight_a", "weight_b", "weight_c"])

        def computed(t: dict[str, Any], strategy: Any = strategy, needs: Any = needs) -> Any:
            problem = Problem(
                t["x"], {x: t[x] for x in "abc"}, dict.fromkeys("abc"), "Quadra", "none", "none"
            )
            return run(problem, strategy, t["grad"], needs)

        wanted = computed(given)
        for key, value in given.items():
            far = spread(value, (1, FAR) if turned else (FAR, 1))
            compare(computed(given | {key: far}), wanted, dtype, (name, turned, key))


def check_aliases() -> None:
    """One tensor is x, each weight and the gradient of the output."""
    x = torch.randn(33, 33)
    exact = x.double().requires_grad_()
    y = quadratic_linear_reference(
        exact, dict.fromkeys("abc", exact), dict.fromkeys("abc"), "Quadra", "none", "none"
    )
    (wanted,) = torch.autograd.grad(y, exact, x.double())
    problem = Problem(x, dict.fromkeys("abc", x), dict.fromkeys("abc"), "Quadra", "none", "none")
    for name in STRATEGIES:
        if not name.endswith("narrow"):
            strategy = strategy_of(Case("Quadra", "none", "none", strategy=name))
            needs = frozenset(["x", "weight_a", "weight_b", "weight_c"])
            found = run(problem, strategy, x, needs)
            output = found.pop("y")
            compare(
                {"y": output, "all": sum(found.values())},
                {"y": y.detach(), "all": wanted},
                torch.float32,
                name,
            )


def main() -> None:
    """Check a choice of cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every case")
    assert launch.INTERPRETED, "set TRITON_INTERPRET=1"
    torch.manual_seed(0)
    cases = list(every_case()) if parser.parse_args().full else CHOICE
    for case in cases:
        check(case)
    check_aliases()
    check_far()
    print(f"{len(cases)} cases checked")


if __name__ == "__main__":
    main()
