"""What one branch computes from x, a matrix product, a convolution or xᵀWx, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

from qcompile.nn.quadratic.bilinear import bilinear
from qcompile.nn.quadratic.formulas import Term
from qcompile.nn.quadratic.geometry import Geometry


def branch(
    term: Term,
    geometry: Geometry | None,
    x: Any,
    weight: Any,
    bias: Any,
    size: tuple[int, int] | None = None,
) -> Any:
    """Compute one branch.

    Args:
        term: what it computes.
        geometry: of the convolution; ``None`` for a linear layer.
        x: the input, padded by :meth:`Geometry.pad_by_mode`; fx proxies work too.
        weight: [N, ...] as the layer holds it.
        bias: [N] or ``None``.
        size: N and n where ``weight`` is an fx proxy, which does not know them.
    """
    if term is Term.BILINEAR:
        return _bilinear(geometry, x, weight, bias, size or tuple(weight.shape[:2]))
    source = x if term is Term.FIRST_ORDER else x * x
    if geometry is None:
        return F.linear(source, weight, bias)
    return geometry.convolve(source, weight, bias)


def _bilinear(
    geometry: Geometry | None, x: Any, weight: Any, bias: Any, size: tuple[int, ...]
) -> Any:
    outputs, width = size
    if geometry is None:
        y = bilinear(x.unsqueeze(-2), weight, 1, outputs, width).squeeze(-2)
        return _add_bias(y, bias)
    groups = geometry.groups
    y = bilinear(geometry.patches(x), weight, groups, outputs // groups, width).flatten(-2)
    # Contiguous, as torch's convolutions return it, so that .view() works afterwards.
    return _add_bias(y, bias).movedim(-1, -geometry.dims - 1).contiguous()


def _add_bias(y: Any, bias: Any) -> Any:
    """Add over the last dimension in the type of ``y``, which autocast may have lowered."""
    return y if bias is None else y + bias.to(y.dtype)


def branch_backward(
    term: Term,
    geometry: Geometry | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight and bias, ``None`` where not needed.

    Args:
        term: as :func:`branch`.
        geometry: as :func:`branch`.
        grad: of what the branch computed, [batch, N, ...].
        x: the padded input, [batch, ...].
        weight: as :func:`branch`.
        bias: as :func:`branch`.
        needs: which of the three are.
    """
    if not any(needs):
        return None, None, None
    if term is Term.BILINEAR:
        like = None if bias is None else bias.to(weight.dtype)
        return _by_autograd(term, geometry, grad, (x, weight, like), needs)
    source = x if term is Term.FIRST_ORDER else x * x
    if geometry is None:
        return (
            grad @ weight if needs[0] else None,
            grad.t() @ source if needs[1] else None,
            grad.sum(0) if needs[2] else None,
        )
    return _convolution_backward(geometry, grad, source, weight, needs)


def _convolution_backward(
    geometry: Geometry, grad: Tensor, source: Tensor, weight: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    size, margins = source.shape[2:], geometry.uneven_margins
    if margins:
        source = F.pad(source, margins)
    padding = [0] * geometry.dims if margins else geometry.even_padding
    found = torch.ops.aten.convolution_backward(
        grad,
        source,
        weight,
        [len(weight)],
        geometry.stride,
        padding,
        geometry.dilation,
        False,
        [0] * geometry.dims,
        geometry.groups,
        needs,
    )
    towards_source = found[0]
    if margins and needs[0]:
        for dim, low in enumerate(margins[-2::-2], start=2):
            towards_source = towards_source.narrow(dim, low, size[dim - 2])
    return towards_source, found[1], found[2]


def _by_autograd(
    term: Term, geometry: Geometry | None, grad: Tensor, inputs: tuple[Any, ...], needs: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Recompute the branch to differentiate it."""
    leaves = [
        None if tensor is None else tensor.detach().requires_grad_(needed)
        for tensor, needed in zip(inputs, needs, strict=True)
    ]
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    with torch.enable_grad():
        y = branch(term, geometry, *leaves)
    found = iter(torch.autograd.grad(y, wanted, grad))
    first, second, third = (
        next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves
    )
    return first, second, third


def unpad(geometry: Geometry | None, grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of ``x`` from that of ``geometry.pad_by_mode(x)``."""
    if geometry is None or geometry.padding_mode == "zeros":
        return grad
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        padded = geometry.pad_by_mode(leaf)
    return torch.autograd.grad(padded, leaf, grad)[0]
