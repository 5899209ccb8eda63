"""Mixed types under autocast: the widest is computed in, as torch's own ``addcmul`` does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qcompile.ops import DOMAIN

_LIBRARY = torch.library.Library(DOMAIN, "FRAGMENT")
_KEYS = ("AutocastCUDA", "AutocastCPU")


def widest(*tensors: Any) -> list[Any]:
    """Return the tensors in the widest of their types; ``None`` stays ``None``."""
    dtype: torch.dtype | None = None
    for x in tensors:
        if isinstance(x, Tensor) and x.is_floating_point():
            dtype = x.dtype if dtype is None else torch.promote_types(dtype, x.dtype)
    return [x.to(dtype) if isinstance(x, Tensor) and dtype is not None else x for x in tensors]


def promote_under_autocast(name: str, count: int) -> None:
    """Let an operator take its first ``count`` arguments in different types under autocast."""
    operator = getattr(getattr(torch.ops, DOMAIN), name).default

    def promoted(*arguments: Any, **named: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_excluded()):
            return operator(*widest(*arguments[:count]), *arguments[count:], **named)

    for key in _KEYS:
        _LIBRARY.impl(name, promoted, key)


def promote_lists_under_autocast(name: str) -> None:
    """Let an operator take a list of tensors, its first argument, in different types."""
    operator = getattr(getattr(torch.ops, DOMAIN), name).default

    def promoted(values: list[Tensor], *arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_excluded()):
            return operator(widest(*values), *arguments)

    for key in _KEYS:
        _LIBRARY.impl(name, promoted, key)


def _excluded() -> torch._C.DispatchKeySet:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
    return keys.add(torch._C.DispatchKey.AutocastCPU)
