"""Quadratic linear layers in plain torch: the definition that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

from qcompile.triton_kernels.elementwise.activations import ACTIVATE, ACTIVATE_BACKWARD
from qcompile.triton_kernels.hadamard.reference import hadamard_reference
from qcompile.triton_kernels.quadratic_linear.forms import FORMS

Branches = dict[str, Any]
"""A tensor, or ``None``, of each branch, by letter."""


def by_letter(form: str, *tensors: Any) -> Branches:
    """Name the tensors of a form's branches, given in the order a, b, c."""
    return dict(zip(FORMS[form].letters, tensors, strict=False))


def combine(
    values: Branches,
    form: str,
    gate: str,
    activation: str,
    multiply: Callable[..., Any] = hadamard_reference,
) -> Any:
    """Return act(gate(first) ∘ second + added) of what the branches compute, each [..., N].

    ``multiply`` computes first ∘ second + added.
    """
    spec = FORMS[form]
    y = values[spec.added] if spec.added else None
    if spec.factors:
        first, second = (values[letter] for letter in spec.factors)
        y = multiply(ACTIVATE[gate](first), second, y)
    return ACTIVATE[activation](y)


def _multiply_backward(grad: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return grad * second, grad * first


def combine_backward(
    grad: Tensor,
    values: Branches,
    form: str,
    gate: str,
    activation: str,
    multiply_backward: Callable[..., tuple[Tensor, Tensor]] = _multiply_backward,
) -> dict[str, Tensor]:
    """Return the gradients of the branches' values.

    Args:
        grad: of the output, [..., N].
        values: what the branches computed; the added one is read only if there is an activation.
        form: canonical name.
        gate: name of the gate.
        activation: name of the activation.
        multiply_backward: gradients of two factors, from that of their product and them.
    """
    spec = FORMS[form]
    found: dict[str, Tensor] = {}
    if activation != "none":
        grad = ACTIVATE_BACKWARD[activation](grad, combine(values, form, gate, "none"))
    if spec.added:
        found[spec.added] = grad
    if spec.factors:
        first, second = (values[letter] for letter in spec.factors)
        towards_gated, towards_second = multiply_backward(grad, ACTIVATE[gate](first), second)
        towards_first = ACTIVATE_BACKWARD[gate](towards_gated, first)
        if spec.factors[0] == spec.factors[1]:
            found[spec.factors[0]] = towards_first + towards_second
        else:
            found |= dict(zip(spec.factors, (towards_first, towards_second), strict=True))
    return found


def branch_values(x: Any, weights: Branches, biases: Branches, form: str) -> Branches:
    """Return what the branches compute from x, [..., K]."""
    spec = FORMS[form]
    return {
        letter: F.linear(_source(x, letter, form), weights[letter], biases[letter])
        for letter in spec.letters
    }


def _source(x: Any, letter: str, form: str) -> Any:
    spec = FORMS[form]
    return x * x if spec.squares and letter == spec.added else x


def quadratic_linear_reference(
    x: Any, weights: Branches, biases: Branches, form: str, gate: str, activation: str
) -> Any:
    """Return the layer's output, [..., N]; fx proxies work too.

    Args:
        x: [..., K].
        weights: [N, K] of each branch.
        biases: [N] or ``None`` of each branch.
        form: canonical name.
        gate: name of the gate.
        activation: name of the activation.
    """
    return combine(branch_values(x, weights, biases, form), form, gate, activation)


def products_backward(
    found: dict[str, Tensor], x: Tensor, weights: Branches, form: str, needs: frozenset[str]
) -> dict[str, Tensor]:
    """Return the gradients of what the branches read, from those of what they computed.

    Args:
        found: gradients of the branches' values, each [M, N].
        x: [M, K].
        weights: [N, K] of each branch.
        form: canonical name.
        needs: of ``x``, ``weight_a``, ``bias_a`` and so on, which are wanted.
    """
    spec = FORMS[form]
    gradients: dict[str, Tensor] = {}
    for letter, towards in found.items():
        source = _source(x, letter, form)
        if f"weight_{letter}" in needs:
            gradients[f"weight_{letter}"] = towards.t() @ source
        if f"bias_{letter}" in needs:
            gradients[f"bias_{letter}"] = towards.sum(0)
        if "x" in needs:
            sent = towards @ weights[letter]
            if spec.squares and letter == spec.added:
                sent = 2 * x * sent
            gradients["x"] = gradients["x"] + sent if "x" in gradients else sent
    return gradients
