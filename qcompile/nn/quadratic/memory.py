"""Which calls hybrid back-propagation takes, and what it needs to know of a layer's modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.config import memory_level
from qcompile.errors import ConfigurationError
from qcompile.nn.quadratic.hybrid import compute
from qcompile.nn.quadratic.operators import hybrid_forward, register_plan
from qcompile.nn.quadratic.plan import NormPlan, Plan, activation_key, pool_key
from qcompile.recompute import recomputing

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Memory:
    """Gives a module the attribute ``memory``: what training keeps, 0, 1 or 3."""

    _memory = 0

    @property
    def memory(self) -> int:
        """What training keeps for the backward pass, see :mod:`qcompile.nn.quadratic.hybrid`.

        Raises:
            ConfigurationError: set to anything but 0, 1 and 3.
        """
        return self._memory

    @memory.setter
    def memory(self, level: int) -> None:
        self._memory = memory_level(level)


def keeps_less(module: Any, x: Any) -> bool:
    """Return whether a call is one that autograd records and hybrid back-propagation can take.

    Where nothing is recorded nothing is kept either. Traces and exports need plain operators,
    ``torch.func`` does not see custom gradients, and mixed types are left to raise torch's error.
    """
    if not isinstance(x, Tensor) or not torch.is_grad_enabled():
        return False
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    if torch._C._are_functorch_transforms_active() or x.is_meta:
        return False
    recorded = x.requires_grad or any(p.requires_grad for p in module.parameters())
    if torch.compiler.is_compiling() and _must_be_seen(module):
        return False
    same = x.dtype == module.weight.dtype or torch.is_autocast_enabled(x.device.type)
    return recorded and x.is_floating_point() and same


def _must_be_seen(module: Any) -> bool:
    """Return whether a compiler has to look into a module, which gives up its memory level.

    The momentum of a batch norm may depend on its count, which no constant can hold, and the
    gradient of xᵀWx takes autograd, which is off within an operator.
    """
    parts = [getattr(module, "layer", module), *module.children()]
    return any(
        getattr(part, "momentum", 0.0) is None or getattr(part, "has_bilinear", False)
        for part in parts
    )


def call(
    layer: Any, norms: Mapping[str, Any], ends: Sequence[nn.Module | None], memory: int, x: Tensor
) -> Tensor:
    """Call a layer, its batch norms and its activation at a memory level above 0.

    Args:
        layer: a quadratic layer.
        norms: batch norms by slot, in the order of the branches, that of the output last.
        ends: activation and pooling, or ``None``; what cannot be repeated is called as it is, and
            keeps what it keeps.
        memory: the level.
        x: the input of the layer.

    Raises:
        ConfigurationError: a batch norm is of another class than torch's plain ones.
    """
    keys, rest_of_ends = _ends(*ends)
    # torch.utils.checkpoint repeats forwards in the backward pass: a batch counts once.
    repeated = not torch.compiler.is_compiling() and recomputing()
    states = tuple(_state(slot, norm, repeated) for slot, norm in norms.items())
    options = (states, *keys, memory, _product_type(x))
    parameters: list[Tensor | None] = []
    for letter in layer.formula.branches:
        parameters += [getattr(layer, f"weight_{letter}"), getattr(layer, f"bias_{letter}")]
    for norm in norms.values():
        parameters += [norm.weight, norm.bias]
    y, buffers = x, _buffers(norms, states)
    if layer.geometry is None:
        y = x.reshape(-1, x.shape[-1])
    elif x.dim() == layer.dims + 1:
        y = x.unsqueeze(0)
    if torch.compiler.is_compiling():
        y = y if layer.geometry is None else layer.geometry.pad_by_mode(y)
        present = tuple(t is not None for t in parameters)
        given = [t for t in parameters if t is not None]
        y, *rest = hybrid_forward(_plan_name(layer, present, *options), y, given, buffers)
    else:
        y, *rest = compute(_plan(layer, layer.geometry, *options), y, parameters, buffers)
    if not repeated:
        _update(states, buffers, rest)
    if layer.geometry is None:
        y = y.reshape(*x.shape[:-1], y.shape[-1])
    elif x.dim() == layer.dims + 1:
        y = y.squeeze(0)
    for module in rest_of_ends:
        y = module(y)
    return y


def _ends(
    activation: nn.Module | None, pool: nn.Module | None
) -> tuple[tuple[Any, Any], list[nn.Module]]:
    """Divide what follows into what can be repeated, and what has to be called as it is."""
    key = activation_key(activation)
    if activation is not None and key is None:
        return (None, None), [activation] + ([] if pool is None else [pool])
    shrinking = pool_key(pool)
    return (key, shrinking), [] if pool is None or shrinking else [pool]


def _plan(layer: Any, geometry: Any, states: tuple[Any, ...], *options: Any) -> Plan:
    return Plan(layer.form, geometry, tuple(NormPlan(*state) for state in states), *options)


def _plan_name(layer: Any, present: tuple[bool, ...], *options: Any) -> str:
    """Name a plan in a graph; its arguments are constants that the compiler has guarded.

    The graph pads by mode: within an operator autograd, which would undo it, is off.
    """
    geometry = None if layer.geometry is None else layer.geometry.padded
    return register_plan(_plan(layer, geometry, *options), present)


# torch.compiler.assume_constant_result does this, and loads the compiler, 150 MB of modules.
_plan_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _product_type(x: Tensor) -> torch.dtype:
    """Return the type that autocast, if it is on, gives matrix products."""
    kind = x.device.type
    lowered = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if lowered else x.dtype


def _state(slot: str, norm: Any, repeated: bool) -> tuple[Any, ...]:
    """Read a batch norm as its own forward would, and count the batch unless it has been.

    Returns:
        The arguments of a :class:`NormPlan`, which a compiler cannot follow.
    """
    if type(norm) not in _NORMS:
        raise ConfigurationError(
            f"memory levels 1 and 3 repeat batch norms, and cannot repeat {type(norm).__name__}: "
            f"set memory=0, or use nn.BatchNorm1d, 2d or 3d."
        )
    tracks = norm.training and norm.track_running_stats
    momentum = norm.momentum
    if tracks and norm.num_batches_tracked is not None:
        if not repeated:
            norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    batch = norm.training or norm.running_mean is None
    tracked = norm.running_mean is not None and (tracks or not norm.training)
    return slot, batch, tracked, momentum or 0.0, norm.eps


def _buffers(norms: Mapping[str, Any], states: tuple[Any, ...]) -> list[Tensor]:
    """List running mean and variance of each batch norm that tracks them."""
    tracking = [norms[slot] for slot, _, tracked, *_ in states if tracked]
    return [tensor for norm in tracking for tensor in (norm.running_mean, norm.running_var)]


def _update(states: tuple[Any, ...], buffers: list[Tensor], updated: Sequence[Tensor]) -> None:
    """Write new running statistics, where a batch norm has used the batch's own."""
    used = [batch for _, batch, tracked, *_ in states if tracked for _ in range(2)]
    old = [buffer for buffer, batch in zip(buffers, used, strict=True) if batch]
    for buffer, fresh in zip(old, updated, strict=False):  # a graph has further outputs
        buffer.copy_(fresh)
