"""The full quadratic form xᵀ W x, one matrix per output, in bounded working memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from qcompile.errors import ConfigurationError, DataError

CHUNK_BYTES = 64 << 20
"""Most memory that the intermediate products of one chunk of rows may take."""


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


def bilinear(rows: Any, weight: torch.Tensor, groups: int) -> Any:
    """Return y[..., g, o] = Σᵢⱼ rows[..., g, i] · weight[g·O + o, i, j] · rows[..., g, j].

    Contracts through W x (O·n numbers a row and group) or through x xᵀ (n²), whichever is less.
    Rows are taken in chunks of at most :data:`CHUNK_BYTES` of products; in training, a call of
    several chunks recomputes each in backward instead of keeping it. While tracing, compiling or
    exporting, the whole batch is one chunk, since its size may be unknown.

    Args:
        rows: [..., groups, n], n inputs of each group.
        weight: [groups·O, n, n].
        groups: number of groups.

    Raises:
        DataError: the rows do not have the width that the weights were made for.
    """
    grouped = weight.unflatten(0, (groups, -1))
    if not has_known_size(rows):
        return _contract(rows, grouped)
    _, outputs, width, _ = grouped.shape
    if rows.shape[-1] != width:
        raise DataError(
            f"xᵀWx over {width} inputs cannot take {rows.shape[-1]}: "
            f"input {tuple(rows.shape)}, weight {tuple(weight.shape)}."
        )
    per_row = groups * min(outputs, width) * width * rows.element_size()
    chunk = max(1, CHUNK_BYTES // max(1, per_row))
    if rows.dim() < 3 or rows.shape[:-2].numel() <= chunk:
        return _contract(rows, grouped)
    recompute = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    pieces = [
        checkpoint(_contract, part, grouped, use_reentrant=False, preserve_rng_state=False)
        if recompute
        else _contract(part, grouped)
        for part in rows.flatten(0, -3).split(chunk)
    ]
    return torch.cat(pieces).unflatten(0, rows.shape[:-2])


def has_known_size(rows: Any) -> bool:
    """Return whether ``rows`` is an ordinary tensor and not a stand-in for batches of any size."""
    return (
        isinstance(rows, torch.Tensor)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _contract(rows: Any, weight: torch.Tensor) -> Any:
    """Contract ``rows`` [..., g, n] with ``weight`` [g, O, n, n] to [..., g, O]."""
    _, outputs, width, _ = weight.shape
    if outputs <= width:
        half = torch.einsum("...gj,goij->...goi", rows, weight)
        return torch.einsum("...goi,...gi->...go", half, rows)
    products = (rows.unsqueeze(-1) * rows.unsqueeze(-2)).flatten(-2)
    return torch.einsum("...gk,gok->...go", products, weight.flatten(-2))
