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
    excluded = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
    excluded = excluded.add(torch._C.DispatchKey.AutocastCPU)

    def promoted(*arguments: Any, **named: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return operator(*widest(*arguments[:count]), *arguments[count:], **named)

    for key in _KEYS:
        _LIBRARY.impl(name, promoted, key)
