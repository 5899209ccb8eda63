"""The ways in which the operator computes quadratic linear layers, each taken by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qcompile.triton_kernels.quadratic_linear.call import QuadraticLinearCall
from qcompile.triton_kernels.quadratic_linear.op import fused_quadratic_linear
from qcompile.triton_kernels.quadratic_linear.problem import Problem
from qcompile.triton_kernels.quadratic_linear.reference import by_letter
from qcompile.triton_kernels.quadratic_linear.strategies import Strategy, backward, forward

__all__ = ["NAMES", "by_path", "launched", "paths", "problem_of"]

NAMES = ("x", "weight_a", "weight_b", "weight_c", "bias_a", "bias_b", "bias_c")
"""The operator's tensors, in order."""


def problem_of(given: tuple[Any, ...], options: tuple[str, str, str]) -> Problem:
    """Return a layer and its input as the kernels see them.

    Args:
        given: what :data:`NAMES` says.
        options: form, gate, activation.
    """
    form = options[0]
    weights, biases = by_letter(form, *given[1:4]), by_letter(form, *given[4:])
    return Problem(given[0], weights, biases, *options)


def paths(problem: Problem, training: bool) -> list[str]:
    """Return the names of all ways but plain torch."""
    return [name for name in QuadraticLinearCall(problem, training).names() if name != "plain"]


def by_path(options: tuple[str, str, str], path: str, keep: bool, *given: Any) -> Any:
    """Call the operator in one way, recorded by autograd."""
    return fused_quadratic_linear(*given, *options, path, keep)[0]


def launched(
    problem: Problem, given: tuple[Any, ...], grad: Tensor, path: str
) -> dict[str, Tensor]:
    """Launch the kernels of one way directly, and return the output and every gradient."""
    strategy = Strategy.parse(path)
    y, kept = forward(problem, strategy, True)
    needs = frozenset(name for name, t in zip(NAMES, given, strict=True) if t is not None)
    return {"y": y, **backward(problem, grad, kept, strategy, needs)}
