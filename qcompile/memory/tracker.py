"""Follows the storages that operators make, without looking into them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from qcompile.memory.layers import LayerClock
from qcompile.memory.ledger import ACTIVATION, TEMPORARY, Block, Ledger
from qcompile.memory.workspace import height

__all__ = ["StorageTracker"]

_ROUNDED = {"cuda": 512}
"""Bytes that an allocator rounds up to, by type of device."""


class StorageTracker(TorchDispatchMode):
    """Enters every storage into a ledger when an operator makes it and when it goes.

    It works on tensors of :class:`torch._subclasses.fake_tensor.FakeTensorMode`, which have sizes
    and no contents, and on real ones. Enter it inside the fake mode.

    Args:
        device: type of the device whose memory counts.
        clock: tells which module is at work.

    Attributes:
        ledger: what happened.
        operations: name of each module → arithmetic operations in it and in the backward pass of
            what it computed; of others than matrix products, convolutions and attention, one for
            each element of the result.
        phase: set by the caller as the step proceeds.
    """

    def __init__(self, device: str, clock: LayerClock) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.operations: dict[str, int] = {}
        self.phase = ""
        self.skips_values = False
        self._device, self._clock = device, clock
        # By address of the storage; the reference tells when it goes.
        self._known: dict[int, tuple[Any, Block]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and enter what it made."""
        kwargs = kwargs or {}
        if self.skips_values:
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0 if args[0].is_floating_point() else 1
            if _adds_sparse(func, args):
                return args[0]
        result = func(*args, **kwargs)
        self._count(func, args, kwargs, result)
        name = str(func.overloadpacket) if hasattr(func, "overloadpacket") else str(func)
        self._enter(name.removeprefix("aten."), result, height(func, args, kwargs, result))
        return result

    def register(self, tensors: Iterable[Tensor], category: str) -> None:
        """Enter tensors that were there before, or correct the category of known ones."""
        for tensor in tensors:
            self._enter("", tensor, 0)
            for block in self.blocks(tensor):
                block.category = category

    def blocks(self, tensor: Tensor) -> list[Block]:
        """Return the known blocks that a tensor consists of."""
        keys = (storage._cdata for storage in _storages(tensor))
        return [self._known[key][1] for key in keys if key in self._known]

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Note what is saved for the backward pass, and by which module first."""

        def pack(tensor: Tensor) -> Tensor:
            for block in self.blocks(tensor):
                if block.category == TEMPORARY:
                    block.category = ACTIVATION
                if block.saver is None:
                    block.saver = self._clock.current if self.phase != "loss" else "(loss)"
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        formula = flop_registry.get(getattr(func, "overloadpacket", func))
        if formula is not None:
            count = formula(*args, **kwargs, out_val=result)
        elif getattr(func, "is_view", False):
            return
        else:
            count = sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        layer = self._clock.current
        self.operations[layer] = self.operations.get(layer, 0) + count

    def _enter(self, operation: str, result: Any, most: int) -> None:
        made = []
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self._device:
                made += [self._follow(storage, operation) for storage in _new(self, tensor)]
        self.ledger.make(self.phase, self._clock.current, operation, made, most)

    def _follow(self, storage: Any, operation: str) -> Block:
        key = storage._cdata
        unit = _ROUNDED.get(self._device, 1)
        block = Block(
            -(-storage.nbytes() // unit) * unit, TEMPORARY, self._clock.current, operation
        )

        def gone(_: Any) -> None:
            del self._known[key]
            self.ledger.free(self.phase, self._clock.current, block)

        self._known[key] = weakref.ref(storage, gone), block
        return block


def _new(tracker: StorageTracker, tensor: Tensor) -> list[Any]:
    return [storage for storage in _storages(tensor) if storage._cdata not in tracker._known]


def _storages(tensor: Tensor) -> list[Any]:
    """Return what holds a tensor's numbers; two storages for a sparse one."""
    if tensor.layout is torch.sparse_coo:
        tensors = [tensor._indices(), tensor._values()]
    elif tensor.layout is torch.strided:
        tensors = [tensor]
    else:
        tensors = []
    return [each.untyped_storage() for each in tensors]


def _adds_sparse(func: Any, args: Any) -> bool:
    """Return whether this adds a sparse tensor in place, which needs no memory."""
    return (
        func is torch.ops.aten.add_.Tensor
        and isinstance(args[1], Tensor)
        and args[1].layout is torch.sparse_coo
    )
