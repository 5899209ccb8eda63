"""Quadratic linear layers: shapes, and who computes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

from gpu.paths import by_path, paths, problem_of
from gpu.roofline import Work
from qcompile.triton_kernels.quadratic_linear.forms import FORMS
from qcompile.triton_kernels.quadratic_linear.op import quadratic_linear
from qcompile.triton_kernels.quadratic_linear.reference import (
    by_letter,
    quadratic_linear_reference,
)

__all__ = [
    "COMPILED",
    "OURS",
    "LinearCase",
    "compile_modes",
    "contestants",
    "linear_cases",
    "tensors",
]

OURS = "qcompile"
COMPILED = {"torch.compile": "default", "torch.compile max-autotune": "max-autotune"}
"""Modes of torch.compile by the contestant's name."""


def compile_modes(quick: bool, graphs: bool = False) -> dict[str, str]:
    """Return the modes that take part; autotuning takes minutes.

    Args:
        quick: leave autotuning out.
        graphs: let it use CUDA graphs, which save launches but copy inputs: for whole networks.
    """
    names = [name for name in COMPILED if not quick or COMPILED[name] == "default"]
    without = "" if graphs else "-no-cudagraphs"
    return {n: "default" if COMPILED[n] == "default" else COMPILED[n] + without for n in names}


TABLE = (
    (8192, 4096, 11008),
    (8192, 1024, 4096),
    (32768, 768, 3072),
    (65536, 512, 512),
    (65536, 256, 256),
    (262144, 128, 128),
)
"""M, K, N from the feed-forward layers of language models down to layers of small networks."""

QUICK = (0, 4, 5)


@dataclass(frozen=True)
class LinearCase:
    """One layer: rows, inputs, outputs, and what it computes."""

    rows: int
    inputs: int
    outputs: int
    form: str = "Quadra"
    gate: str = "none"
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        """What the table calls it."""
        gate = "" if self.gate == "none" else f" {self.gate}"
        return f"{self.form}{gate}"

    def work(self, training: bool) -> Work:
        """Return the least work of a forward pass, or of one with a backward pass.

        The backward pass multiplies twice for each product of the forward pass and reads what that
        has read again.
        """
        branches = len(FORMS[self.form].letters)
        x, y = self.rows * self.inputs, self.rows * self.outputs
        weights = branches * self.inputs * self.outputs
        products = 2 * branches * x * self.outputs
        forward = Work(products, (x + weights + y) * self.dtype.itemsize)
        if not training:
            return forward
        # Gradients of x and weights are written, y's is read.
        return forward + Work(2 * products, (2 * x + 2 * weights + y) * self.dtype.itemsize)


def linear_cases(quick: bool) -> list[LinearCase]:
    """List the layers: Quadra at every shape, gated layers where models have them, the rest."""
    shapes = [TABLE[i] for i in QUICK] if quick else list(TABLE)
    cases = [LinearCase(*shape) for shape in shapes]
    cases += [LinearCase(*TABLE[1], "T4", "silu")]
    if quick:
        return cases
    cases += [LinearCase(*shape, "T4", "silu") for shape in (TABLE[0], TABLE[2], TABLE[4])]
    cases += [LinearCase(*TABLE[1], "T4", "gelu_tanh"), LinearCase(*TABLE[4], "T4")]
    return cases + [LinearCase(*TABLE[4], form) for form in ("T2", "T3", "T2_4")]


def tensors(case: LinearCase, device: str) -> tuple[Tensor | None, ...]:
    """Return x, three weights and three biases, ``None`` where the form has none."""
    letters = FORMS[case.form].letters
    made = {"device": device, "dtype": case.dtype}
    scale = case.inputs**-0.5
    x = torch.randn(case.rows, case.inputs, **made)
    weights = [
        torch.randn(case.outputs, case.inputs, **made) * scale if letter in letters else None
        for letter in "abc"
    ]
    biases = [torch.randn(case.outputs, **made) if w is not None else None for w in weights]
    return x, *weights, *biases


def contestants(
    case: LinearCase, training: bool, quick: bool, device: str = "cuda"
) -> dict[str, Callable[[], Any]]:
    """Return who computes a layer, by name; each call makes one pass."""
    given = tensors(case, device)
    options = (case.form, case.gate, "none")
    named = dict(zip(("form", "gate", "activation"), options, strict=True))
    torch._dynamo.reset()
    ways: dict[str, Callable[..., Any]] = {"eager": functools.partial(_composed, options)}
    for name, mode in compile_modes(quick).items():
        ways[name] = torch.compile(ways["eager"], mode=mode, fullgraph=True)
    ways[OURS] = functools.partial(quadratic_linear, **named)
    ways[f"{OURS}, compiled"] = torch.compile(ways[OURS], fullgraph=True)
    every = paths(problem_of(given, options), training)
    for path in every[:2] if quick else every:
        ways[f"{OURS} {path}"] = functools.partial(by_path, options, path, training)
    if find_spec("liger_kernel") and case.form == "T4" and case.gate in ("silu", "gelu_tanh"):
        ways["Liger"] = functools.partial(_liger, case.gate)
    if not training:
        return {name: functools.partial(_forward, way, given) for name, way in ways.items()}
    inputs = [None if t is None else t.requires_grad_() for t in given]
    grad = torch.randn(case.rows, case.outputs, device=device, dtype=case.dtype)
    return {name: functools.partial(_step, way, inputs, grad) for name, way in ways.items()}


def _composed(options: tuple[str, str, str], *given: Any) -> Any:
    """Compute a layer as one would write it."""
    form = options[0]
    return quadratic_linear_reference(
        given[0], by_letter(form, *given[1:4]), by_letter(form, *given[4:]), *options
    )


def _liger(gate: str, x: Any, weight_a: Any, weight_b: Any, _: Any, *biases: Any) -> Any:
    """Compute a gated layer with Liger's kernel behind two of torch's products."""
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    function = LigerSiLUMulFunction if gate == "silu" else LigerGELUMulFunction
    return function.apply(F.linear(x, weight_a, biases[0]), F.linear(x, weight_b, biases[1]))


def _forward(way: Callable[..., Any], given: Any) -> Any:
    with torch.no_grad():
        return way(*given)


def _step(way: Callable[..., Any], inputs: Any, grad: Tensor) -> Any:
    wanted = [t for t in inputs if t is not None]
    return torch.autograd.grad(way(*inputs), wanted, grad)
