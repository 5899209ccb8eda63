"""What the operator computes, as data that operator, reference and kernels read.

Every form is act(gate(first) ∘ second + added) with branches x Wᵀ + bias, of which some take x∘x in
place of x; T2 has nothing but the added branch.
"""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.config import canonical_form, choose
from qcompile.errors import ConfigurationError

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
"""Names that ``gate`` and ``activation`` take; ``gelu`` is the exact one."""


@dataclass(frozen=True)
class Form:
    """One form.

    Args:
        letters: of the branches, in order.
        factors: the two branches that are multiplied, or empty.
        added: the branch that is added, or empty.
        squares: whether the added branch takes x∘x.
    """

    letters: str
    factors: str = ""
    added: str = ""
    squares: bool = False

    @property
    def first_order(self) -> str:
        """Letters of the branches that take x, each once."""
        return "".join(x for x in self.letters if not (self.squares and x == self.added))


FORMS = {
    "T2": Form("a", added="a", squares=True),
    "T3": Form("a", factors="aa"),
    "T4": Form("ab", factors="ab"),
    "T2_4": Form("abc", factors="ab", added="c", squares=True),
    "Quadra": Form("abc", factors="ab", added="c"),
}
"""The forms without xᵀWx, by the names of :data:`qcompile.config.FORMS`."""


def checked_form(form: str, gate: str, activation: str) -> str:
    """Return the canonical name of a form.

    Raises:
        ConfigurationError: a name is unknown, or form and gate do not fit together.
    """
    name = canonical_form(form)
    if name not in FORMS:
        raise ConfigurationError(
            f"quadratic_linear: {name} has a branch xᵀWx, which is no matrix product of x: use "
            f"qcompile.nn.QuadraticLinear, or one of {', '.join(FORMS)}."
        )
    choose("gate", gate, ACTIVATIONS)
    choose("activation", activation, ACTIVATIONS)
    if gate != "none" and len(set(FORMS[name].factors)) != 2:
        raise ConfigurationError(
            f"quadratic_linear: gate={gate!r} needs a form with two factors, and {name} has none: "
            f"use T4, T2_4 or Quadra, or gate='none'."
        )
    return name
