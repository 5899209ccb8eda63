"""Exchanging layers of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

__all__ = ["swap_layers"]

_Module = TypeVar("_Module", bound=nn.Module)


def swap_layers(model: _Module, other: Callable[[nn.Module], nn.Module | None]) -> _Module:
    """Put ``other(module)`` in the place of every module for which it is not None.

    A module that occurs in several places is exchanged once, for one other.

    Returns:
        The model, or what takes its place.
    """
    replaced = other(model)
    if replaced is not None:
        return replaced  # type: ignore[return-value]
    done: dict[int, nn.Module | None] = {}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if id(child) not in done:
                done[id(child)] = other(child)
            found = done[id(child)]
            if found is not None:
                setattr(module, name, found)
    return model
