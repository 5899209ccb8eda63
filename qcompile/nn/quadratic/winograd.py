"""Convolutions of 3×3 by Winograd's minimal filtering, for what is recomputed and for gradients.

It takes 16 multiplications where the direct method takes 36, and equals it up to rounding. So what
is to be the same bits as at memory level 0, outputs, is left to torch.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def convolve(
    geometry: Geometry, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """Return the convolutions of ``x``, padded by mode, with weights of one size."""
    (padding, _), outputs = geometry.even_padding, len(weights[0])
    size = [extent + 2 * padding - 2 for extent in x.shape[2:]]
    found = [huge_pages(x.new_empty(len(x), outputs, *size)) for _ in weights]
    room = _room(geometry, x, weights, of_weights=False)
    threads = torch.get_num_threads()
    _core.winograd_forward(x.detach(), _plain(weights), padding, room, found, threads)
    for y, bias in zip(found, biases, strict=True):
        if bias is not None:
            y += bias.detach().view(-1, 1, 1)
    return found


def towards_input(
    geometry: Geometry,
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    total: Tensor | None,
) -> Tensor:
    """Return the gradient of ``x``, padded by mode, from those of the outputs.

    Args:
        geometry: of the convolutions.
        grads: of the outputs, contiguous.
        x: the input.
        weights: the kernels, of one size.
        total: what to add it to, or ``None``.
    """
    add = total is not None
    total = huge_pages(torch.empty_like(x)) if total is None else total
    padding = geometry.even_padding[0]
    room = _room(geometry, x, weights, of_weights=False)
    arguments = (list(grads), _plain(weights), padding, room, total, add)
    _core.winograd_towards_input(*arguments, torch.get_num_threads())
    return total


def towards_weights(
    geometry: Geometry, grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients of the weights; arguments are those of :func:`towards_input`."""
    padding, found = geometry.even_padding[0], [torch.empty_like(w) for w in _plain(weights)]
    room = _room(geometry, x, weights, of_weights=True)
    arguments = (x.detach(), list(grads), padding, room, found)
    _core.winograd_towards_weights(*arguments, torch.get_num_threads())
    return found


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors]


def _room(geometry: Geometry, x: Tensor, weights: Sequence[Tensor], *, of_weights: bool) -> Tensor:
    """Return room for what is transformed."""
    outputs, inputs = weights[0].shape[:2]
    sizes = _core.winograd_scratch(
        inputs, outputs, *x.shape[2:], geometry.even_padding[0], len(weights)
    )
    return huge_pages(torch.empty(sizes[of_weights]))
