"""One call of the operator, as strategies and launches see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.triton_kernels.quadratic_linear.forms import FORMS, Form
from qcompile.triton_kernels.quadratic_linear.reference import Branches


@dataclass(frozen=True)
class Problem:
    """A quadratic linear layer and its input.

    Args:
        x: [M, K], any strides.
        weights: [N, K] of each branch, by letter, any strides.
        biases: [N] or ``None`` of each branch, by letter.
        form: canonical name.
        gate: name of the gate.
        activation: name of the activation.
        lowered: type that autocast will convert the tensors to, or ``None``.
    """

    x: Tensor
    weights: Branches
    biases: Branches
    form: str
    gate: str
    activation: str
    lowered: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type that is computed in."""
        return self.lowered or self.x.dtype

    def converted(self) -> Problem:
        """Return the same with tensors of the type that is computed in."""
        weights, biases = (
            {x: None if t is None else t.to(self.dtype) for x, t in branches.items()}
            for branches in (self.weights, self.biases)
        )
        return Problem(self.x.to(self.dtype), weights, biases, *self.options())

    @property
    def spec(self) -> Form:
        """The form."""
        return FORMS[self.form]

    @property
    def size(self) -> tuple[int, int]:
        """M and N."""
        return self.x.shape[0], self.weights["a"].shape[0]

    @property
    def roles(self) -> dict[str, str]:
        """Letter of the first and the second factor and of the added branch, or nothing."""
        factors, added = self.spec.factors, self.spec.added
        second = factors[1:] if factors[:1] != factors[1:] else ""
        return {"first": factors[:1], "second": second, "added": added}

    @property
    def product(self) -> str:
        """What the kernels call the factors: a ``pair``, a ``square`` or ``none``."""
        return ("none", "square", "pair")[len(set(self.spec.factors))]

    @property
    def stored(self) -> str:
        """Letters of the branches whose gradient is not just that of the output."""
        factors = "".join(dict.fromkeys(self.spec.factors))
        return factors + (self.spec.added if self.activation != "none" else "")

    @property
    def is_empty(self) -> bool:
        """Whether a dimension is zero, so that there is nothing to launch."""
        return 0 in (*self.size, self.x.shape[1])

    def options(self) -> tuple[str, str, str]:
        """Return form, gate and activation."""
        return self.form, self.gate, self.activation


@dataclass(frozen=True)
class Kept:
    """Products that the forward pass has kept, without their biases.

    Args:
        factors: of the first, or of first and second side by side, [M, N] or [M, 2N]; ``None``
            where there are no factors.
        added: of the added branch, [M, N]; ``None`` where it is missing or nobody asks for it.
    """

    factors: Tensor | None
    added: Tensor | None
