"""The eight quadratic neurons as data; the linear and the convolution layers read this table.

A neuron is a sum of branches ``a``, ``b``, ``c``, of which at most one pair is multiplied. A
branch is a first-order map (matrix product or convolution) of x or of x∘x, or the full quadratic
form xᵀWx, plus its bias.

Fresh weights are normal with standard deviation ``gain / sqrt(fan)``, where fan counts the
weights of one output. Gains are chosen so that E[y²] = ½ when x is standard normal, with the same
share for every added term. A degree-2 map squares the scale of its input, so a stack without
normalisation has no stable scale: under ½ it decays, about as fast as torch's own initialisation
does, instead of overflowing. E[x⁴] = 3 is why x∘x and the square (a)∘(a) carry a third.
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


def _first(gain: float) -> Branch:
    return Branch(Term.FIRST_ORDER, gain)


def _squared(gain: float) -> Branch:
    return Branch(Term.SQUARED_INPUT, gain)


def _bilinear(gain: float) -> Branch:
    return Branch(Term.BILINEAR, gain)


FORMULAS: dict[str, Formula] = {
    "T1": Formula("xᵀ A x", {"a": _bilinear((1 / 2) ** 0.5)}),
    "T1L": Formula(
        "xᵀ A x + B x",
        {"a": _bilinear(1 / 2), "b": _first(1 / 2)},
        keeps="b",
        zeroed="a",
    ),
    "T2": Formula("A (x∘x)", {"a": _squared((1 / 6) ** 0.5)}),
    "T3": Formula("(A x)∘(A x)", {"a": _first((1 / 6) ** 0.25)}, factors="aa"),
    "T4": Formula(
        "(A x)∘(B x)",
        {"a": _first((1 / 2) ** 0.25), "b": _first((1 / 2) ** 0.25)},
        factors="ab",
        keeps="a",
        zeroed="b",
        ones="b",
    ),
    "T1_2": Formula(
        "xᵀ A x + B (x∘x)",
        {"a": _bilinear(1 / 2), "b": _squared((1 / 12) ** 0.5)},
    ),
    "T2_4": Formula(
        "(A x)∘(B x) + C (x∘x)",
        {
            "a": _first((1 / 4) ** 0.25),
            "b": _first((1 / 4) ** 0.25),
            "c": _squared((1 / 12) ** 0.5),
        },
        factors="ab",
        keeps="a",
        zeroed="bc",
        ones="b",
    ),
    "Quadra": Formula(
        "(A x)∘(B x) + C x",
        {"a": _first((1 / 4) ** 0.25), "b": _first((1 / 4) ** 0.25), "c": _first(1 / 2)},
        factors="ab",
        keeps="c",
        zeroed="a",
    ),
}
"""Every form of :data:`qcompile.config.FORMS`. Each branch has its own bias."""

PRESERVING_FORMS = tuple(form for form in FORMS if FORMULAS[form].keeps)
"""Forms that can take over a first-order layer's weights and compute exactly what it computed."""
