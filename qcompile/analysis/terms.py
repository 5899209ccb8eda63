"""The terms of a quadratic layer apart: what is multiplied, and what is added to it."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.nn.quadratic import QuadraticBlock, QuadraticLayer
from qcompile.nn.quadratic.formulas import Formula, Term

__all__ = ["FIRST_ORDER", "QUADRATIC", "term_values"]

FIRST_ORDER, QUADRATIC = "first-order", "quadratic"


@torch.no_grad()
def term_values(layer: QuadraticLayer | QuadraticBlock, x: Tensor) -> dict[str, Tensor]:
    """Return the sum of a layer's quadratic terms and, where it has one, its first-order term.

    Args:
        layer: of any form; ``Quadra`` and ``T1L`` have a first-order term. A product of two
            first-order maps counts as quadratic, biases included. Of a block, what its branch
            norms return; in training mode these count the batch once more.
        x: input of the layer.

    Returns:
        :data:`QUADRATIC` and perhaps :data:`FIRST_ORDER`, each of the shape that the branches
        combine to.
    """
    formula, values = _branches(layer, x)
    first_order = [
        values.pop(letter)
        for letter, branch in formula.branches.items()
        if branch.term is Term.FIRST_ORDER and letter not in formula.factors
    ]
    found: dict[str, Tensor] = {}
    if formula.factors:
        first, second = (values[letter] for letter in formula.factors)
        rest = [value for letter, value in values.items() if letter not in formula.factors]
        found[QUADRATIC] = sum(rest, first * second)
    else:
        found[QUADRATIC] = sum(values.values(), torch.zeros_like(next(iter(values.values()))))
    if first_order:
        found[FIRST_ORDER] = first_order[0]
    return found


def _branches(
    layer: QuadraticLayer | QuadraticBlock, x: Tensor
) -> tuple[Formula, dict[str, Tensor]]:
    if isinstance(layer, QuadraticLayer):
        return layer.formula, layer.branches(x)
    values = layer.layer.branches(x)
    for letter, norm in layer.branch_norms.items():
        values[letter] = norm(values[letter])
    return layer.layer.formula, values
