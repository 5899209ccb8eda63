"""The element-wise end of quadratic layers and blocks: what is computed, and who computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from gpu.linear import OURS, compile_modes
from gpu.roofline import Work
from qcompile.triton_kernels.hadamard.op import epilogue
from qcompile.triton_kernels.hadamard.reference import epilogue_reference
from qcompile.triton_kernels.hadamard.spec import Spec

__all__ = ["ElementwiseCase", "contestants", "elementwise_cases"]

ROWS, COLUMNS = 65536, 1024
QUICK_ROWS = 16384


@dataclass(frozen=True)
class ElementwiseCase:
    """One epilogue over [rows, columns].

    Args:
        name: for people.
        product: ``pair``, ``square`` or ``none``.
        gate: of the first factor.
        activation: of the end.
        added: whether a third tensor is added.
        normalised: whether each branch and their combination has a folded batch norm.
        rows: number of rows.
        columns: number of channels.
        dtype: of the tensors.
    """

    name: str
    product: str = "pair"
    gate: str = "none"
    activation: str = "none"
    added: bool = False
    normalised: bool = False
    rows: int = ROWS
    columns: int = COLUMNS
    dtype: torch.dtype = torch.bfloat16

    @property
    def spec(self) -> Spec:
        """The same for the operator."""
        return Spec(self.product, self.gate, self.activation, -1, self.normalised)

    def work(self, training: bool) -> Work:
        """Return the least bytes of a forward pass, or of one with a backward pass.

        Branches are read and the result written; of a backward pass, its gradient and the factors
        are read, and the gradients written that are not that one itself.
        """
        factors = {"pair": 2, "square": 1, "none": 1}[self.product]
        one = self.rows * self.columns * self.dtype.itemsize
        forward = Work(0, (factors + self.added + 1) * one)
        if not training:
            return forward
        # The addend's gradient is the result's, where nothing stands between; nor is it read then.
        apart = self.added and (self.activation != "none" or self.normalised)
        return forward + Work(0, (1 + 2 * (factors + apart)) * one)


def elementwise_cases(quick: bool) -> list[ElementwiseCase]:
    """List the epilogues of the forms, of gated layers and of a block."""
    rows = QUICK_ROWS if quick else ROWS
    cases = [
        ElementwiseCase("a∘b", rows=rows),
        ElementwiseCase("a∘b + c", added=True, rows=rows),
        ElementwiseCase("silu(a)∘b", gate="silu", rows=rows),
    ]
    if quick:
        return cases
    block = {"activation": "relu", "added": True, "normalised": True}
    return [
        *cases,
        ElementwiseCase("a∘a", "square"),
        ElementwiseCase("gelu_tanh(a)∘b", gate="gelu_tanh"),
        ElementwiseCase("relu(a∘b + c)", added=True, activation="relu"),
        ElementwiseCase("relu(n(n(a)∘n(b) + n(c)))", **block),
    ]


def contestants(
    case: ElementwiseCase, training: bool, quick: bool, device: str = "cuda"
) -> dict[str, Callable[[], Any]]:
    """Return who computes an epilogue, by name; each call makes one pass."""
    made: dict[str, Any] = {"device": device, "dtype": case.dtype}
    size = (case.rows, case.columns)
    a, b, c, grad = (torch.randn(size, **made) for _ in range(4))
    given = [a, b if case.product == "pair" else None, c if case.added else None]
    constants: dict[str, Any] = {"scales": None, "shifts": None}
    if case.normalised:
        size = case.spec.slots(case.added), case.columns
        constants = {name: torch.randn(size, device=device) for name in constants}
    torch._dynamo.reset()
    options = {"product": case.product, "gate": case.gate, "activation": case.activation}
    ways: dict[str, Callable[..., Any]] = {}
    ways["eager"] = functools.partial(_composed, case.spec, **constants)
    for name, mode in compile_modes(quick).items():
        ways[name] = torch.compile(ways["eager"], mode=mode, fullgraph=True)
    ways[OURS] = functools.partial(epilogue, **constants, **options, outer=case.normalised)
    if find_spec("liger_kernel") and case.gate in ("silu", "gelu_tanh"):
        ways["Liger"] = functools.partial(_liger, case.gate)
    if not training:
        return {name: functools.partial(_forward, way, given) for name, way in ways.items()}
    # Constants of a batch norm have gradients by way of its statistics, which are not timed here.
    wanted = [t.requires_grad_() for t in given if t is not None]
    return {
        name: lambda way=way: torch.autograd.grad(way(*given), wanted, grad)
        for name, way in ways.items()
    }


def _composed(spec: Spec, a: Any, b: Any, c: Any, scales: Any, shifts: Any) -> Any:
    return epilogue_reference(a, b, c, scales, shifts, spec)


def _liger(gate: str, a: Any, b: Any, *_: Any) -> Any:
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    function = LigerSiLUMulFunction if gate == "silu" else LigerGELUMulFunction
    return function.apply(a, b)


def _forward(way: Callable[..., Any], given: Any) -> Any:
    with torch.no_grad():
        return way(*given)
