"""The norm of a sparse tensor, which torch lacks and ``torch.nn.utils.clip_grad_norm_`` needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__: list[str] = []

_OPERATOR = "aten::linalg_vector_norm"
_BACKEND = "SparseCPU"


def _vector_norm(
    tensor: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    if dim is not None or keepdim or not ord > 0:
        raise NotImplementedError(
            f"the norm of a sparse tensor along dim={dim} with keepdim={keepdim} and ord={ord}: "
            f"only norms of positive order over all elements are; use to_dense()."
        )
    # Zeros add nothing to a norm of positive order. Rows named twice count as their sum.
    norm: Tensor = torch.linalg.vector_norm(tensor.coalesce().values(), ord, dtype=dtype)
    return norm


if not torch._C._dispatch_has_kernel_for_dispatch_key(_OPERATOR, _BACKEND):
    _library = torch.library.Library("aten", "IMPL")
    _library.impl("linalg_vector_norm", _vector_norm, _BACKEND)
