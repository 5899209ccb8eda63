"""A convolution that computes few of its filters for each example."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from qcompile.config import LSH
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn.active_neurons import active_neurons, check_active
from qcompile.nn.hashed import Hashed
from qcompile.uncompiled import uncompiled

__all__ = ["LSHConv2d"]

_PATCH_ELEMENTS = 1 << 20
"""Of patches in memory at once."""


class LSHConv2d(Hashed, nn.Conv2d):
    """``torch.nn.Conv2d`` with LSH-sampled filters in training.

    SLIDE (MLSys 2020, section 6) names convolutions as future work. Here each example computes the
    ``config.active`` filters that are likely to have a large mean response to it: a filter's mean
    over all positions is its product with the example's mean patch, and that patch is looked up in
    hash tables over the filters. The other filters output 0 and get no gradient. Modes, tables and
    evaluation are those of :class:`qcompile.nn.LSHHidden`. What follows should map 0 to 0.

    What it gains: ``active / C_out`` of the multiplications, forward and backward, as products of
    the images' patches with the active filters. Copying patches costs, too: with 64 of 512 filters
    (3×3, 256 channels) a step takes half of a dense convolution's time on one core, with a quarter
    of the filters about as long. Batch norm behind it sees the zeros.

    Gradients are dense, for any optimiser. Training runs on the CPU, with parameters in float32 or
    float64, to which the input is cast.

    Args:
        in_channels: C_in.
        out_channels: C_out, the number of filters.
        kernel_size: as in ``torch.nn.Conv2d``, and so are ``stride``, ``padding``, ``dilation``,
            ``bias`` and ``padding_mode``; there are no groups.
        config: hash family, tables and sampling.

    Attributes:
        weight: Parameter [C_out, C_in, height, width].
        bias: Parameter [C_out] or None.

    Raises:
        ConfigurationError: ``config.active`` is below 2, or the convolution is grouped.
    """

    replaces = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        *args: Any,
        config: LSH | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, *args, **kwargs)
        self._adopt(config or LSH())

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, config: LSH | None = None) -> LSHConv2d:
        """Make a layer of ``conv``'s Parameter objects and settings, in the same training mode."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        for name in (*nn.Conv2d.__constants__, "transposed", "_reversed_padding_repeated_twice"):
            setattr(layer, name, getattr(conv, name))
        for name in ("weight", "bias"):
            layer.register_parameter(name, conv._parameters[name])
        layer._adopt(config or LSH())
        return layer.train(conv.training)

    def _adopt(self, config: LSH) -> None:
        check_active(config, "LSHConv2d")
        if self.groups != 1:
            raise ConfigurationError(
                f"LSHConv2d: a convolution in {self.groups} groups has no patches of all channels "
                f"to hash; leave it as it is."
            )
        self._init_tables(config, self.weight[0].numel(), self.out_channels)

    def reset_parameters(self) -> None:
        """Draw weight and bias afresh, as ``torch.nn.Conv2d`` does."""
        super().reset_parameters()
        if "_tables" in vars(self):
            self._tables.invalidate()

    def forward(self, input: Tensor) -> Tensor:
        """Compute the active filters, in evaluation mode all.

        Args:
            input: floating [B, C_in, H, W] or [C_in, H, W].

        Returns:
            [B, C_out, H', W'] or [C_out, H', W'].

        Raises:
            DataError: ``input`` has the wrong shape, or training is asked for off the CPU.
        """
        if not self.training:
            return super().forward(input)
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            raise DataError(
                f"LSHConv2d: input has shape {list(input.shape)}, expected [B, {self.in_channels}, "
                f"H, W]."
            )
        if input.dim() == 3:
            return self._sampled(input[None])[0]
        return self._sampled(input)

    @uncompiled
    def _sampled(self, images: Tensor) -> Tensor:
        self._check_trainable(images, (torch.float32, torch.float64))
        images = self._padded(images.to(self.weight.dtype))
        window = _Window(images.shape, self.kernel_size, self.stride, self.dilation)
        filters = self.weight.detach().flatten(1).float().contiguous()
        queries = window.view(images.detach()).mean(dim=(4, 5)).flatten(1).float().contiguous()
        step = self._begin_step(queries)
        lists = active_neurons(self._tables, queries, filters, self.config, step)
        ids = torch.from_numpy(np.stack(lists))
        output: Tensor = _ActiveFilters.apply(images, self.weight, self.bias, ids, window)
        self._end_step()
        return output

    def _padded(self, images: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        around = self._reversed_padding_repeated_twice
        return F.pad(images, around, mode=mode) if any(around) else images

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        c = self.config
        return f"{super().extra_repr()}, mode={c.mode}, family={c.family}, active={c.active}"


class _Window:
    """Where the filters look, in padded images of one shape [B, C_in, H, W].

    Raises:
        DataError: the images are smaller than a filter.
    """

    def __init__(self, shape: Any, kernel: Any, stride: Any, dilation: Any) -> None:
        self._image = tuple(shape[2:])
        self._kernel, self._stride, self._dilation = kernel, stride, dilation
        self.extent = tuple(
            (size - step * (length - 1) - 1) // every + 1
            for size, length, every, step in zip(self._image, kernel, stride, dilation, strict=True)
        )
        if min(self.extent) < 1:
            raise DataError(
                f"LSHConv2d: the padded input has the shape {list(shape)}, smaller than the "
                f"filters, {list(kernel)} with dilation {list(dilation)}."
            )
        elements = shape[1] * math.prod(kernel) * math.prod(self.extent)
        self._together = max(1, _PATCH_ELEMENTS // elements)

    def parts(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Split tensors [B, ...] into runs of examples whose patches fit into the cache."""
        return zip(*(tensor.split(self._together) for tensor in tensors), strict=True)

    def view(self, images: Tensor) -> Tensor:
        """View images as [b, C_in, h, w, H', W']: what each position is computed from."""
        example, channel, row, column = images.stride()
        within = row * self._dilation[0], column * self._dilation[1]
        across = row * self._stride[0], column * self._stride[1]
        size = (*images.shape[:2], *self._kernel, *self.extent)
        return images.as_strided(size, (example, channel, *within, *across))

    def patches(self, images: Tensor) -> Tensor:
        """Return the same as matrices [b, C_in·h·w, H'·W']."""
        return self.view(images).reshape(len(images), -1, math.prod(self.extent))

    def images(self, patches: Tensor) -> Tensor:
        """Add patches up where they came from: the gradient of :meth:`patches`."""
        return F.fold(
            patches, self._image, self._kernel, self._dilation, padding=0, stride=self._stride
        )


class _ActiveFilters(torch.autograd.Function):
    """Filters ``ids`` [B, A] of each image, as products of matrices; the others give 0."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, window: _Window
    ) -> Tensor:
        ctx.save_for_backward(images, weight, ids)
        ctx.window, ctx.has_bias = window, bias is not None
        output = images.new_zeros(len(images), len(weight), *window.extent)
        for part, own, result in window.parts(images, ids, output):
            values = weight.flatten(1)[own] @ window.patches(part)
            if bias is not None:
                values += bias[own][:, :, None]
            result.flatten(2).scatter_(1, _along(own, values), values)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, ids = ctx.saved_tensors
        filters = weight.flatten(1)
        grad_images: list[Tensor] = []
        grad_weight = torch.zeros_like(filters)
        grad_bias = weight.new_zeros(len(weight))
        for part, own, gradient in ctx.window.parts(images, ids, grad_output.flatten(2)):
            gradient = gradient.gather(1, _along(own, gradient))
            if ctx.needs_input_grad[0]:
                grad_images.append(ctx.window.images(filters[own].mT @ gradient))
            products = gradient @ ctx.window.patches(part).mT
            for example, product, total in zip(own, products, gradient.sum(dim=2), strict=True):
                grad_weight[example] += product  # an example has no filter twice
                grad_bias[example] += total
        return (
            torch.cat(grad_images) if grad_images else None,
            grad_weight.view_as(weight),
            grad_bias if ctx.has_bias else None,
            None,
            None,
        )


def _along(ids: Tensor, values: Tensor) -> Tensor:
    """Repeat ids [b, A] over the positions of values [b, ..., positions]."""
    return ids[:, :, None].expand(-1, -1, values.shape[2])
