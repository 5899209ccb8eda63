"""The full quadratic form xᵀ W x, one matrix per output, in bounded working memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from qcompile.errors import ConfigurationError, DataError
from qcompile.triton_kernels.bilinear.op import (
    choose_bilinear,
    fused_bilinear,
    is_bilinear_fusible,
)

CHUNK_BYTES = 64 << 20
"""Most memory that the intermediate products of one chunk of rows may take."""

# Nothing here is random, so there is no generator state to keep.
_CHECKPOINT: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}


def check_memory(form: str, weights: int, dtype: torch.dtype, limit: int) -> None:
    """Refuse a layer whose weights exceed ``limit`` bytes.

    Raises:
        ConfigurationError: it would; the message says how much and what to use instead.
    """
    needed = weights * dtype.itemsize
    if needed > limit:
        raise ConfigurationError(
            f"{form} keeps an n by n matrix per output: this layer would need {needed:,} bytes of "
            f"weights and memory_limit is {limit:,}. Use T4, T2_4 or Quadra, whose weights grow "
            f"with n, exclude the layer, or raise memory_limit."
        )


def bilinear(rows: Any, weight: Any, groups: int, outputs: int, width: int) -> Any:
    """Return y[..., g, o] = Σᵢⱼ rows[..., g, i] · weight[g·outputs + o, i, j] · rows[..., g, j].

    Contracts through W x (outputs·width numbers a row and group) or through x xᵀ (width²),
    whichever is less. Rows are taken in chunks of at most :data:`CHUNK_BYTES` of products; in
    training, a call of several chunks recomputes each in backward instead of keeping it. While
    tracing, compiling or exporting, the whole batch is one chunk, as its size may be unknown.

    Args:
        rows: [..., groups, width].
        weight: [groups·outputs, width, width].
        groups: number of groups.
        outputs: number of outputs of each group.
        width: number of inputs of each group.

    Narrow rows on a GPU are computed by one kernel where that is faster.

    Raises:
        DataError: the rows do not have the width that the weights were made for.
    """
    if groups == 1 and is_bilinear_fusible(rows, weight):
        flat = rows.flatten(0, -2)
        plain = partial(_plain, flat.detach().unsqueeze(1), weight.detach(), 1, outputs, width)
        if choose_bilinear(flat, weight, plain):
            return fused_bilinear(flat, weight).view(*rows.shape[:-1], outputs)
    return _plain(rows, weight, groups, outputs, width)


def _plain(rows: Any, weight: Any, groups: int, outputs: int, width: int) -> Any:
    through_products = width < outputs
    grouped = weight.unflatten(0, (groups, outputs))
    if not has_known_size(rows):
        return _contract(rows, grouped, through_products)
    if rows.shape[-1] != width:
        raise DataError(
            f"xᵀWx over {width} inputs cannot take {rows.shape[-1]}: "
            f"input {tuple(rows.shape)}, weight {tuple(weight.shape)}."
        )
    per_row = groups * min(outputs, width) * width * rows.element_size()
    chunk = max(1, CHUNK_BYTES // max(1, per_row))
    if rows.dim() < 3 or rows.shape[:-2].numel() <= chunk:
        return _contract(rows, grouped, through_products)
    recompute = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    contract = partial(checkpoint, _contract, **_CHECKPOINT) if recompute else _contract
    pieces = [
        contract(part, grouped, through_products) for part in rows.flatten(0, -3).split(chunk)
    ]
    return torch.cat(pieces).unflatten(0, rows.shape[:-2])


def has_known_size(rows: Any) -> bool:
    """Return whether ``rows`` is an ordinary tensor and not a stand-in for batches of any size."""
    return (
        isinstance(rows, torch.Tensor)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _contract(rows: Any, weight: Any, through_products: bool) -> Any:
    """Contract ``rows`` [..., g, n] with ``weight`` [g, o, n, n] to [..., g, o]."""
    if through_products:
        products = (rows.unsqueeze(-1) * rows.unsqueeze(-2)).flatten(-2)
        return torch.einsum("...gk,gok->...go", products, weight.flatten(-2))
    half = torch.einsum("...gj,goij->...goi", rows, weight)
    return torch.einsum("...goi,...gi->...go", half, rows)
