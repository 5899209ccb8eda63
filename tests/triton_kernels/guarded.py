"""Tensors of every layout, amid guard values that no kernel may touch."""

from __future__ import annotations

import math
from typing import Any

import torch

GUARD = 7.0

UNITS = {
    torch.float64: 2.0**-51,
    torch.float32: 2.0**-22,
    torch.float16: 2.0**-10,
    # The interpreter truncates to bf16 where hardware rounds, hence twice its unit.
    torch.bfloat16: 2.0**-7,
}
"""What a result may be off, relative to the size of what it is computed from."""

LAYOUTS = {
    "contiguous": "no gaps",
    "channels_last": "dimension 1 innermost",
    "columns": "a part of a tensor of thrice the columns",
    "channels": "a part of a tensor of thrice the channels",
    "part of channels_last": "a part of a channels-last tensor of thrice the channels",
    "transposed": "the first dimension innermost",
    "expanded": "one value",
}


class Guarded:
    """Makes tensors, and checks later that nothing beside them was written."""

    def __init__(self) -> None:
        self._storages: list[tuple[torch.Tensor, torch.Tensor]] = []

    def make(self, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
        """Return a normal tensor of one of :data:`LAYOUTS`."""
        if layout == "expanded":
            return torch.randn((), dtype=torch.float64).to(dtype).expand(shape)
        order = list(range(len(shape)))  # of the dimensions in memory
        if layout.endswith("channels_last"):
            order = order[:1] + order[2:] + order[1:2]
        elif layout == "transposed":
            order = order[1:] + order[:1]
        sizes = [shape[dim] for dim in order]
        part = {"columns": len(shape) - 1, "channels": min(1, len(shape) - 1)}.get(layout)
        part = len(shape) - 1 if layout.startswith("part") else part
        if part is not None:
            sizes[part] *= 3
        count = math.prod(sizes)
        storage = torch.full((count + 64,), GUARD, dtype=dtype)
        view = storage[32 : 32 + count].view(sizes)
        if part is not None:
            view = view.narrow(part, sizes[part] // 3, sizes[part] // 3)
        x = view.permute([order.index(dim) for dim in range(len(shape))])
        x.copy_(torch.randn(shape, dtype=torch.float64))
        own = torch.zeros(count + 64, dtype=torch.bool)
        own.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
        self._storages.append((storage, own))
        return x

    def check(self, what: Any) -> None:
        """Fail if something beside a tensor was written."""
        for storage, own in self._storages:
            assert (storage[~own] == GUARD).all(), what
        self._storages.clear()
