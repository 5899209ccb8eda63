"""Which module is at work, in the forward pass and in the backward pass of what it computed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LayerClock", "first_tensor"]


class LayerClock:
    """Follows the calls of a model's modules.

    Nodes of the autograd graph are numbered in the order of their making. What the numbering
    stood at when a module began and ended tells, in the backward pass, whose node is running.

    Args:
        model: the module to follow, with its hooks for as long as :meth:`following` lasts.

    Attributes:
        shapes: name of each module that returned a tensor → shape of the first one, of its last
            call.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, str] = {}
        self._modules = dict(model.named_modules())
        self._owners = {
            id(parameter): name
            for name, module in self._modules.items()
            for parameter in module.parameters(recurse=False)
        }
        self._running: list[str] = []
        self._numbers: list[int] = [0]
        self._at: list[str] = [""]
        self.shapes: dict[str, tuple[int, ...]] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow calls until the context ends."""
        handles: list[Any] = []
        for name, module in self._modules.items():
            handles += [
                module.register_forward_pre_hook(lambda *_, name=name: self._begin(name)),
                module.register_forward_hook(
                    lambda _module, _inputs, output, name=name: self._end(name, output),
                    always_call=True,
                ),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._running.clear()

    @property
    def current(self) -> str:
        """Name of the innermost module at work, empty for the model itself and outside of it."""
        if self._running:
            return self._running[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        variable = getattr(node, "variable", None)
        if variable is not None:  # the node that adds up a parameter's gradient
            return self._owners.get(id(variable), "")
        return self._at[bisect_right(self._numbers, node._sequence_nr()) - 1]

    def _begin(self, name: str) -> None:
        self._running.append(name)
        self._mark()

    def _end(self, name: str, output: Any) -> None:
        # After an error or an early return the modules inside have not ended.
        while self._running and self._running.pop() != name:
            pass
        self._mark()
        tensor = first_tensor(output)
        if tensor is not None:
            self.shapes[name] = tuple(tensor.shape)

    def _mark(self) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._at.append(self._running[-1] if self._running else "")


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in nested containers, or None."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((t for t in map(first_tensor, value) if t is not None), None)
    return None
