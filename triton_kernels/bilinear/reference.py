"""The full quadratic form in plain torch: the definition that the kernels are tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bilinear_reference(x: Any, weight: Any) -> Any:
    """Return y[..., o] = Σᵢⱼ x[..., i] · weight[o, i, j] · x[..., j].

    Args:
        x: [..., K].
        weight: [N, K, K].
    """
    return torch.einsum("...oj,...j->...o", torch.einsum("...i,oij->...oj", x, weight), x)


def bilinear_backward_reference(
    grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]
) -> list[Tensor]:
    """Return the gradients of x and of the weight, as far as needed.

    Args:
        grad: of the output, [M, N].
        x: [M, K].
        weight: [N, K, K].
        needs: whether the gradient of x, and that of the weight, are.
    """
    found = []
    if needs[0]:
        symmetric = weight + weight.transpose(1, 2)
        found.append(torch.einsum("mo,moj->mj", grad, torch.einsum("mi,oij->moj", x, symmetric)))
    if needs[1]:
        found.append(torch.einsum("mo,mi,mj->oij", grad, x, x))
    return found
