"""The eight quadratic neurons as data; the linear and the convolution layers read this table.

A neuron is a sum of branches ``a``, ``b``, ``c``, of which at most one pair is multiplied. A
branch is a first-order map (matrix product or convolution) of x or of x∘x, or the full quadratic
form xᵀWx, plus its bias.

Fresh weights are normal with standard deviation ``gain / sqrt(fan)``, where fan counts the
weights of one output. A gain follows from the share of E[y²] that its term gets when x is
standard normal: a third for a linear term (the variance of torch's own default), an eighth for the
quadratic terms beside it, a quarter in all for forms without a linear term. A degree-2 map squares
the scale of its input, so a stack of these without normalisation has no stable scale; these
shares make it decay rather than overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from qcompile.config import FORMS
from qcompile.triton_kernels.hadamard.op import hadamard


class Term(Enum):
    """What a branch computes from x, before its bias."""

    FIRST_ORDER = "W x"
    SQUARED_INPUT = "W (x∘x)"
    BILINEAR = "xᵀ W x"


@dataclass(frozen=True)
class Branch:
    """One branch of a neuron.

    Args:
        term: what it computes.
        gain: scale of its fresh weights, see the module's docstring.
    """

    term: Term
    gain: float


@dataclass(frozen=True)
class Formula:
    """One form of quadratic neuron.

    Args:
        text: the formula, for people.
        branches: by letter, in order.
        factors: letters of the two branches that are multiplied, or empty; the other branches
            are added.
        keeps: letter of the branch that takes the first-order weights when the form preserves
            the function of the layer it replaces, or empty if the form cannot.
        zeroed: letters of the branches whose weights are zero right after preservation.
        ones: letters of the branches whose bias is one right after preservation.
    """

    text: str
    branches: dict[str, Branch]
    factors: str = ""
    keeps: str = ""
    zeroed: str = ""
    ones: str = ""

    @property
    def has_bilinear(self) -> bool:
        """Whether a branch needs n² weights per output."""
        return any(branch.term is Term.BILINEAR for branch in self.branches.values())

    def combine(self, values: dict[str, Any]) -> Any:
        """Multiply and add the branches' values, tensors of one shape (or fx proxies)."""
        added = [values[letter] for letter in self.branches if letter not in self.factors]
        if self.factors:
            first, second = (values[letter] for letter in self.factors)
            return hadamard(first, second, *added)
        return sum(added[1:], added[0])


def _first(share: float) -> Branch:
    return Branch(Term.FIRST_ORDER, share**0.5)


def _squared(share: float) -> Branch:
    return Branch(Term.SQUARED_INPUT, (share / 3) ** 0.5)  # E[x⁴] = 3


def _bilinear(share: float) -> Branch:
    return Branch(Term.BILINEAR, share**0.5)


def _factor(share: float) -> Branch:
    return Branch(Term.FIRST_ORDER, share**0.25)  # ``share`` is that of the product


FORMULAS: dict[str, Formula] = {
    "T1": Formula("xᵀ A x", {"a": _bilinear(1 / 4)}),
    "T1L": Formula(
        "xᵀ A x + B x", {"a": _bilinear(1 / 8), "b": _first(1 / 3)}, keeps="b", zeroed="a"
    ),
    "T2": Formula("A (x∘x)", {"a": _squared(1 / 4)}),
    "T3": Formula("(A x)∘(A x)", {"a": _factor(1 / 12)}, factors="aa"),  # a normal's E[a⁴] = 3
    "T4": Formula(
        "(A x)∘(B x)",
        {"a": _factor(1 / 4), "b": _factor(1 / 4)},
        factors="ab",
        keeps="a",
        zeroed="b",
        ones="b",
    ),
    "T1_2": Formula("xᵀ A x + B (x∘x)", {"a": _bilinear(1 / 8), "b": _squared(1 / 8)}),
    "T2_4": Formula(
        "(A x)∘(B x) + C (x∘x)",
        {"a": _factor(1 / 8), "b": _factor(1 / 8), "c": _squared(1 / 8)},
        factors="ab",
        keeps="a",
        zeroed="bc",
        ones="b",
    ),
    "Quadra": Formula(
        "(A x)∘(B x) + C x",
        {"a": _factor(1 / 8), "b": _factor(1 / 8), "c": _first(1 / 3)},
        factors="ab",
        keeps="c",
        zeroed="a",
    ),
}
"""Every form of :data:`qcompile.config.FORMS`. Each branch has its own bias."""

PRESERVING_FORMS = tuple(form for form in FORMS if FORMULAS[form].keeps)
"""Forms that can take over a first-order layer's weights and compute exactly what it computed."""
