"""Memory that operators take while they run and give back before they return.

A fake tensor mode knows the results of an operator, not its workspace. On a CPU that is large for
convolutions: oneDNN rearranges images, weights and results into blocks of channels, and gradients
likewise. These estimates were fitted to what the allocator of torch 2.13 reports with oneDNN 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["height"]

_BLOCK = 16
"""Channels that oneDNN keeps together; fewer are filled up."""


def height(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the bytes that an operator takes at its height, results included, or 0.

    Zero stands for no more than the results. Only operators on a CPU are known.
    """
    estimate = _ESTIMATES.get(func)
    tensor = args[0] if args else None
    if estimate is None or not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
        return 0
    return estimate(args, result)


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _blocked(image: Tensor) -> int:
    """Return the bytes of an image [batch, channels, *spatial] in blocks of channels."""
    channels = -(-image.shape[1] // _BLOCK) * _BLOCK
    if image.shape[1] <= 3 and image.dtype == torch.float32:
        return 0  # there is a kernel for plain pictures
    return image.shape[0] * channels * math.prod(image.shape[2:]) * image.element_size()


def _convolution(args: Any, result: Tensor) -> int:
    image, weight, transposed, groups = args[0], args[1], args[6], args[8]
    if not _by_onednn(image, weight, args[3], args[5], groups):
        return _grouped(_bytes(result), groups) + _columns(
            image, weight, result, args[5], transposed
        )
    if _channels_last(image, weight):
        return _bytes(result) + _bytes(weight)
    moved = _blocked(result)
    kept = 0 if image.dtype == torch.float32 else _blocked(image)
    return max(_blocked(image) + _bytes(weight) + moved, kept + moved + _bytes(result))


def _convolution_backward(args: Any, result: Any) -> int:
    gradient, image, weight, transposed, groups = args[0], args[1], args[2], args[7], args[9]
    wants_image = _bytes(image) if args[10][0] else 0
    if not _by_onednn(image, weight, args[4], args[6], groups):
        columns = _columns(image, weight, gradient, args[6], transposed)
        return _grouped(wants_image + _bytes(weight), groups) + columns
    # Gradients of weights in half precision are added up in float32.
    weights = _bytes(weight) * (1 if weight.dtype == torch.float32 else 2)
    if _channels_last(image, weight):
        return wants_image + 2 * weights + _bytes(weight)
    images = _blocked(gradient) + _blocked(image)
    return wants_image + max(images + weights, weights + _bytes(weight))


def _channels_last(image: Tensor, weight: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(image.dim())
    return wanted is not None and any(
        tensor.is_contiguous(memory_format=wanted) and not tensor.is_contiguous()
        for tensor in (image, weight)
    )


def _by_onednn(image: Tensor, weight: Tensor, stride: Any, dilation: Any, groups: int) -> bool:
    """Return whether torch leaves a convolution to oneDNN (``ConvParams::use_mkldnn``)."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if image.dtype in (torch.bfloat16, torch.float16):
        return True
    if image.dtype != torch.float32:
        return False
    kernel = weight.shape[2:]
    worth_it = (
        max(stride) > 1
        or max(dilation) > 1
        or image.shape[0] >= _BLOCK
        or max(kernel) > 1
        or torch.get_num_threads() > 1
    )
    return worth_it and (
        groups > 1 or min(kernel[-2:]) > 3 or image.shape[0] > 1 or image.numel() > 20480
    )


def _grouped(results: int, groups: int) -> int:
    """Return what results take that torch's own kernels make group by group and then join."""
    return results if groups == 1 else 2 * results


def _columns(image: Tensor, weight: Tensor, result: Tensor, dilation: Any, transposed: bool) -> int:
    """Return the bytes of an image's receptive fields, which torch's own kernels lay out."""
    kernel = math.prod(weight.shape[2:])
    if kernel == 1 or transposed:
        return 0
    one = weight.shape[1] * kernel * math.prod(result.shape[2:]) * image.element_size()
    return one if max(dilation) > 1 else one * image.shape[0]


def _batch_norm_backward(args: Any, result: Any) -> int:
    image = args[1]
    made = sum(_bytes(tensor) for tensor in result)
    return made + _bytes(image)  # it makes room for the gradient twice


_ATEN = torch.ops.aten
_ESTIMATES: dict[Any, Callable[[Any, Any], int]] = {
    _ATEN.convolution.default: _convolution,
    _ATEN.convolution_backward.default: _convolution_backward,
    _ATEN.native_batch_norm_backward.default: _batch_norm_backward,
}
