"""Convolutions of 3×3 by Winograd's minimal filtering, for what is recomputed and for gradients.

It takes 16 multiplications where the direct method takes 36, and equals it up to rounding. So what
is to be the same bits as at memory level 0, outputs, is left to torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.nn.quadratic.geometry import Geometry
from qcompile.runtime import _core
from qcompile.runtime.memory import huge_pages

LEAST_CHANNELS = 16
"""Fewest channels of either side for which the transforms are worth it."""

LEAST_SIZE = 8
"""Least height and width of the output for which they are, measured on two cores."""


def takes(geometry: Geometry | None, x: Tensor, weight: Tensor) -> bool:
    """Return whether a convolution of ``x``, padded by mode, is one that these functions know.

    Tensors that only stand for others, and what somebody watches, get plain operators.
    """
    if geometry is None or geometry.dims != 2 or geometry.groups != 1:
        return False
    if geometry.kernel_size != (3, 3) or {*geometry.stride, *geometry.dilation} != {1}:
        return False
    padding = geometry.even_padding
    if geometry.uneven_margins or padding[0] != padding[1] or padding[0] > 2:
        return False
    if any(size + 2 * padding[0] - 2 < LEAST_SIZE for size in x.shape[2:]):
        return False
    if min(weight.shape[:2]) < LEAST_CHANNELS or len(x) == 0:
        return False
    if torch._C._len_torch_dispatch_stack() != 0:
        return False
    return all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        for tensor in (x, weight)
    )


def convolve(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of ``x``, padded by mode."""
    (padding, _), (outputs, inputs) = geometry.even_padding, weight.shape[:2]
    size = [extent + 2 * padding - 2 for extent in x.shape[2:]]
    y = huge_pages(x.new_empty(len(x), outputs, *size))
    room = _room(inputs, outputs)
    arguments = (x.detach(), weight.detach(), padding, room, y)
    _core.winograd_forward(*arguments, torch.get_num_threads())
    return y if bias is None else y.add_(bias.detach().view(-1, 1, 1))


def towards_input(
    geometry: Geometry, grad: Tensor, x: Tensor, weight: Tensor, total: Tensor | None
) -> Tensor:
    """Return the gradient of ``x``, padded by mode, from that of the output.

    Args:
        geometry: of the convolution.
        grad: of the output, contiguous.
        x: the input.
        weight: the kernels.
        total: what to add it to, or ``None``.
    """
    add = total is not None
    total = huge_pages(torch.empty_like(x)) if total is None else total
    padding = geometry.even_padding[0]
    room = _room(*weight.shape[:2])
    arguments = (grad, weight.detach(), padding, room, total, add)
    _core.winograd_towards_input(*arguments, torch.get_num_threads())
    return total


def towards_weight(geometry: Geometry, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight; arguments are those of :func:`towards_input`."""
    padding, found = geometry.even_padding[0], torch.empty_like(weight)
    outputs, inputs = weight.shape[:2]
    room = huge_pages(torch.empty(_core.winograd_scratch(inputs, outputs, *x.shape[2:], padding)))
    arguments = (x.detach(), grad, padding, room, found.detach())
    _core.winograd_towards_weight(*arguments, torch.get_num_threads())
    return found


def _room(inputs: int, outputs: int) -> Tensor:
    """Return room for transformed weights."""
    return huge_pages(torch.empty(16 * (inputs * outputs + 16)))
