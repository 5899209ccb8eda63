"""Data parallelism for everything below a sharded output layer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qcompile.distributed.group import Group
from qcompile.distributed.start import agree
from qcompile.errors import DistributedError

__all__ = ["check_replicas", "replicated", "sum_gradients"]


def replicated(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters, by name, of which every rank has a copy of its own."""
    sharded = {
        id(parameter)
        for module in model.modules()
        if getattr(module, "sharded", False)
        for parameter in module.parameters(recurse=False)
    }
    return {name: p for name, p in model.named_parameters() if id(p) not in sharded}


def sum_gradients(model: nn.Module, group: Group) -> None:
    """Add up the gradients of replicated parameters over ranks; call it after ``backward()``.

    The loss of a sharded output layer is the mean over the examples of all ranks, so the sum is
    its gradient. Dense gradients travel in one all-reduce, row-sparse ones as rows and their
    numbers. Parameters that have theirs already (of a layer that sees the examples of all ranks,
    or is updated within ``backward()``) are left out. Replicas stay equal, bit for bit.
    """
    if group.size == 1:
        return
    settled = {
        id(parameter)
        for module in model.modules()
        if getattr(module, "sees_all_examples", False)
        for parameter in module.parameters()
    }
    parameters = [p for p in replicated(model).values() if p.requires_grad and id(p) not in settled]
    # Some rank may have had no use for a parameter, or a dense gradient where others have rows.
    kinds = group.table(*(_kind(p) for p in parameters)) if parameters else []
    together = [max(of) for of in zip(*kinds, strict=True)]
    _sum_dense([p for p, kind in zip(parameters, together, strict=True) if kind == _DENSE], group)
    for parameter, kind in zip(parameters, together, strict=True):
        if kind == _ROWS:
            _gather_rows(parameter, group)


_NONE, _ROWS, _DENSE = range(3)


def _kind(parameter: Tensor) -> int:
    if parameter.grad is None:
        return _NONE
    by_row = parameter.grad.is_sparse and parameter.grad.sparse_dim() == 1
    return _ROWS if by_row else _DENSE


def _sum_dense(parameters: Iterable[nn.Parameter], group: Group) -> None:
    by_type: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_type.setdefault(parameter.dtype, []).append(parameter)
    for of_type in by_type.values():
        flat = torch.cat([_dense(p).reshape(-1) for p in of_type])
        group.sum_(flat)
        for p, piece in zip(of_type, flat.split([p.numel() for p in of_type]), strict=True):
            p.grad = piece.view_as(p).clone()


def _dense(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


def _gather_rows(parameter: nn.Parameter, group: Group) -> None:
    gradient = parameter.grad
    if gradient is None:
        rows = torch.zeros(0, dtype=torch.int64)
        values = parameter.new_zeros(0, *parameter.shape[1:])
    else:
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
    counts = [row[0] for row in group.table(len(rows))]
    parameter.grad = torch.sparse_coo_tensor(
        group.gather(rows, counts)[None],
        group.gather(values, counts),
        tuple(parameter.shape),
        check_invariants=False,
    )


def check_replicas(model: nn.Module, group: Group) -> None:
    """Make sure that replicated parameters and buffers have the same bits on every rank.

    Raises:
        DistributedError: one differs; the message names it.
    """
    if group.size == 1:
        return
    tensors: dict[str, Tensor] = {**replicated(model), **dict(model.named_buffers())}
    try:
        agree(group, {name: _digest(tensor) for name, tensor in tensors.items()})
    except DistributedError as error:
        raise DistributedError(
            f"the ranks' copies of the network have drifted apart: {error} Their processors or "
            "libraries may differ; go on from an older checkpoint."
        ) from error


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()
