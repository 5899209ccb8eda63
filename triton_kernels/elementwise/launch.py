"""How kernels are launched, in eager mode and while a graph is traced."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from qcompile.triton_kernels.elementwise.walk import Walk

SIZES = ["rows", "units", "groups", "column_tiles", "channels", "per_chunk", "tiles"]
"""Arguments that say how to walk."""


def unspecialised(*tensors: str, sizes: list[str] = SIZES) -> list[str]:
    """List arguments whose values compile no kernel of their own: sizes, and tensors' strides."""
    return sizes + [f"{name}_{part}" for name in tensors for part in ("row", "group")]


def run(kernel: Any, grid: tuple[int, ...], like: Tensor, **arguments: Any) -> None:
    """Launch a kernel on the device of ``like``, or write the launch into a graph.

    ``wrap_triton`` would do in eager mode, too, at a millisecond a launch.
    """
    if type(like) not in (Tensor, torch.nn.Parameter) or torch._C._len_torch_dispatch_stack():
        wrap_triton(kernel)[grid](**arguments)
        return
    with torch.cuda.device_of(like) if like.is_cuda else nullcontext():
        kernel[grid](**arguments)


def chunked(walk: Walk) -> dict[str, int]:
    """Return the arguments that divide a reduction."""
    return {"per_chunk": walk.per_chunk, "tiles": walk.tiles}
