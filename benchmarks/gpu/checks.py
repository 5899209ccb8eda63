"""Compares kernels with float64 before anything is timed; in Triton's interpreter without a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu.linear import LinearCase, tensors
from gpu.networks import LEVELS, block, composed
from gpu.paths import NAMES, launched, paths, problem_of
from qcompile.triton_kernels.hadamard.reference import epilogue_reference
from qcompile.triton_kernels.hadamard.spec import Spec
from qcompile.triton_kernels.quadratic_linear.op import quadratic_linear
from qcompile.triton_kernels.quadratic_linear.reference import (
    by_letter,
    quadratic_linear_reference,
)

__all__ = ["Check", "blocks", "checks"]

LIMITS = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest ‖got − wanted‖ / ‖wanted‖. Products of float32 may be computed in tf32, and the
interpreter truncates to bfloat16."""

BLOCK_LIMIT = 1e-2
"""For float32, whose convolutions cuDNN computes in tf32."""

FUNCTIONS = (("none", "none"), ("silu", "none"), ("gelu_tanh", "relu"))


@dataclass(frozen=True)
class Check:
    """One comparison: relative error in the Euclidean norm, and how large it may be."""

    name: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error is within its limit; NaN is not."""
        return self.error <= self.limit


def checks(device: str, shape: tuple[int, int, int]) -> Iterator[Check]:
    """Compare kernels, and on a GPU the operators as users call them, with float64.

    Args:
        device: ``cuda``, or ``cpu`` in Triton's interpreter.
        shape: M, K, N of the linear layers.
    """
    yield from _layers(device, shape)
    yield from _elementwise(device)
    if device == "cuda":
        yield from blocks(device)


def _layers(device: str, shape: tuple[int, int, int]) -> Iterator[Check]:
    cases = [
        (form, gate if form not in ("T2", "T3") else "none", activation, dtype)
        for form, dtype in itertools.product(("T2", "T3", "T4", "T2_4", "Quadra"), LIMITS)
        for gate, activation in FUNCTIONS
    ]
    for form, gate, activation, dtype in dict.fromkeys(cases):
        if activation == "none" or dtype == torch.float32:
            # Else the sign of a product rounded to half precision decides what passes the relu.
            yield from _linear(LinearCase(*shape, form, gate, dtype), activation, device)


def _linear(case: LinearCase, activation: str, device: str) -> Iterator[Check]:
    """Compare each way of computing a layer; in the interpreter each engine with a tile."""
    given = tensors(case, device)
    options = (case.form, case.gate, activation)
    grad = torch.randn(case.rows, case.outputs, device=device, dtype=case.dtype)
    problem = problem_of(given, options)
    every = paths(problem, True)
    if device != "cuda":
        fused = [name for name in every if name.startswith("fused")]
        tiles = {name.rpartition("/")[2]: name for name in fused}
        every = ["apart", "concat", *tiles.values()]
    found = {name: launched(problem, given, grad, name) for name in every}
    if device == "cuda":
        found["as chosen"] = _by_operator(given, options, grad)
    wanted = _exact(given, options, grad)
    for way, values in found.items():
        for name, value in wanted.items():
            what = f"{'/'.join(options)} {_short(case.dtype)} {way}: {name}"
            yield Check(what, _error(values[name], value), LIMITS[case.dtype])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _exact(given: Any, options: Any, grad: Tensor) -> dict[str, Tensor]:
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in given]
    form = options[0]
    letters = by_letter(form, *leaves[1:4]), by_letter(form, *leaves[4:])
    y = quadratic_linear_reference(leaves[0], *letters, *options)
    return _with_gradients(y, leaves, grad.double())


def _by_operator(given: Any, options: Any, grad: Tensor) -> dict[str, Tensor]:
    leaves = [None if t is None else t.detach().requires_grad_() for t in given]
    form, gate, activation = options
    y = quadratic_linear(*leaves, form=form, gate=gate, activation=activation)
    return _with_gradients(y, leaves, grad)


def _with_gradients(y: Tensor, leaves: Any, grad: Tensor) -> dict[str, Tensor]:
    named = {name: t for name, t in zip(NAMES, leaves, strict=True) if t is not None}
    found = torch.autograd.grad(y, list(named.values()), grad)
    return {"y": y.detach(), **dict(zip(named, found, strict=True))}


def _elementwise(device: str) -> Iterator[Check]:
    """Compare the epilogue's kernel, called as it is launched."""
    from qcompile.triton_kernels.hadamard.gpu import compute, gradients

    for spec, dtype in itertools.product(
        (Spec(), Spec(gate="silu"), Spec("square"), Spec(activation="gelu", outer=True)), LIMITS
    ):
        a, b, c, grad = (torch.randn(67, 45, device=device).to(dtype) for _ in range(4))
        b = b if spec.product == "pair" else None
        rows = spec.slots(True), 45
        scales, shifts = (
            torch.randn(rows, device=device) if spec.outer else None for _ in range(2)
        )
        given = (a, b, c, scales, shifts)
        exact = [None if t is None else t.double().requires_grad_() for t in given]
        y = epilogue_reference(*exact, spec)
        wanted = torch.autograd.grad(y, [t for t in exact if t is not None], grad.double())
        needs = [t is not None for t in given]
        found = [compute(*given, spec), *gradients(grad, *given, spec, needs)]
        what = f"epilogue {spec.product}/{spec.gate}/{spec.activation} {_short(dtype)}"
        for number, pair in enumerate(zip(found, (y.detach(), *wanted), strict=True)):
            yield Check(f"{what}: {number}", _error(*pair), LIMITS[dtype])


def blocks(device: str) -> Iterator[Check]:
    """Compare blocks at each memory level with the same of torch's own layers in float64."""
    x = torch.randn(6, 5, 9, 7, device=device).contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    models = {f"block, level {level}": block(level, 5).to(device) for level in LEVELS}
    wanted = _trained(composed(block(0, 5)).to(device).double(), x.double(), grad.double())
    for name, model in models.items():
        found = _trained(model, x, grad)
        for number, pair in enumerate(zip(found, wanted, strict=True)):
            yield Check(f"{name}: {number}", _error(*pair), BLOCK_LIMIT)


def _trained(model: Any, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return a block's output, and the gradients of its input and of three kernels."""
    source = x.detach().requires_grad_()
    y = model(source)
    layer = getattr(model, "layer", None)
    kernels = [
        getattr(model, f"conv_{x}").weight if layer is None else getattr(layer, f"weight_{x}")
        for x in "abc"
    ]
    return [y.detach(), *torch.autograd.grad(y, [source, *kernels], grad)]


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())
