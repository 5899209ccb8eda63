"""A call of the operator as the dispatcher sees it."""

from __future__ import annotations

from typing import Any

import torch

from qcompile.triton_kernels.dispatch import hint, name_of_kind
from qcompile.triton_kernels.hadamard.op import fused_hadamard_backward, hadamard
from qcompile.triton_kernels.quadratic_linear.problem import Problem
from qcompile.triton_kernels.quadratic_linear.reference import (
    branch_values,
    combine,
    combine_backward,
    products_backward,
)
from qcompile.triton_kernels.quadratic_linear.strategies import (
    Strategy,
    backward,
    forward,
    tiles_of,
)
from qcompile.triton_kernels.quadratic_linear.tiles import is_narrow
from qcompile.triton_kernels.tuning import precision

FUSED_DEPTH = 512
"""Largest K at which, unmeasured, products are fused; above it they are bound by arithmetic."""


class QuadraticLinearCall:
    """A call, and whether gradients will be asked for.

    Calls of one kind have device, type, form, functions, biases, K, N and the layout of the
    tensors in common, and M to the next power of two.
    """

    def __init__(self, problem: Problem, training: bool) -> None:
        self.problem = problem
        self.training = training

    def kind(self) -> tuple[Any, ...]:
        """Return what calls of one kind have in common."""
        problem = self.problem
        x, (rows, columns) = problem.x, problem.size
        size = problem.dtype.itemsize
        tensors = (x, *(problem.weights[letter] for letter in problem.spec.letters))
        strides = [(hint(t.stride(0)) * size, hint(t.stride(1))) for t in tensors]
        biases = "".join(letter for letter, bias in problem.biases.items() if bias is not None)
        return (
            x.device,
            "quadratic_linear",
            *name_of_kind(problem.dtype, rows),
            *problem.options(),
            biases,
            hint(x.shape[1]),
            hint(columns),
            *(row % 16 == 0 and column == 1 for row, column in strides),
            self.training,
        )

    def names(self) -> list[str]:
        """Return the names of the strategies."""
        engines = ["library", *self._own_engines()]
        names = (f"{tile.name}/{engine}" for tile in tiles_of(self.problem) for engine in engines)
        return ["plain", "apart", "concat", *(f"fused/{name}" for name in names)]

    def _own_engines(self) -> list[str]:
        """Return those of kernels for the backward pass, which spill without tensor cores."""
        problem = self.problem
        if not self.training or not self._on_tensor_cores():
            return []
        narrow = is_narrow(problem.dtype, hint(problem.x.shape[1]), problem.activation)
        return ["kept", "narrow"][: 1 + narrow]

    def _on_tensor_cores(self) -> bool:
        dtype = self.problem.dtype
        return dtype != torch.float32 or precision(dtype) == "tf32"

    def first(self) -> list[str]:
        """Return those that are measured first: each tile with library products."""
        return [name for name in self.names() if not name.endswith(("/kept", "/narrow"))]

    def then(self, seconds: dict[str, float]) -> list[str]:
        """Return the best tile with products of our own."""
        fused = [name for name in seconds if name.startswith("fused")]
        if not fused:
            return []
        best = min(fused, key=seconds.__getitem__).removesuffix("library")
        return [best + engine for engine in self._own_engines()]

    def rule(self) -> str:
        """Return a strategy by type, K and activation alone."""
        tiles, depth = tiles_of(self.problem), hint(self.problem.x.shape[1])
        if not tiles or not self._on_tensor_cores() or not 0 <= depth <= FUSED_DEPTH:
            return "plain"
        engine = "narrow" if "narrow" in self._own_engines() else "library"
        return f"fused/{tiles[0].name}/{engine}"

    def run(self, name: str) -> None:
        """Make the call, in training with the backward pass of all gradients."""
        problem = self.problem.converted()
        if name == "plain":
            self._run_plain(problem)
            return
        strategy = Strategy.parse(name)
        y, kept = forward(problem, strategy, self.training)
        if self.training:
            backward(problem, y, kept, strategy, _everything(problem))

    def _run_plain(self, problem: Problem) -> None:
        """Use plain torch and the Hadamard kernel, keeping what the branches compute."""
        values = branch_values(problem.x, problem.weights, problem.biases, problem.form)
        y = combine(values, *problem.options(), hadamard)
        if self.training:
            found = combine_backward(y, values, *problem.options(), fused_hadamard_backward)
            needs = _everything(problem)
            products_backward(found, problem.x, problem.weights, problem.form, needs)


def _everything(problem: Problem) -> frozenset[str]:
    biases = [f"bias_{x}" for x, bias in problem.biases.items() if bias is not None]
    return frozenset(["x", *(f"weight_{x}" for x in problem.spec.letters), *biases])
