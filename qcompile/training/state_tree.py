"""Nested state, such as a ``state_dict``, as tensors by name and plain JSON types, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["give", "take"]


def take(path: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a nested value to ``tensors``; names stand in their place."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {str(key): take(f"{path}.{key}", item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [take(f"{path}.{place}", item, tensors) for place, item in enumerate(value)]
    return value


def give(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo :func:`take`, but for the keys of dictionaries, which are now text."""
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: give(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [give(item, tensors) for item in value]
    return value
