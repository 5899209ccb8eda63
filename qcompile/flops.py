"""Counts what one call of a model computes, module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True)
class Measurement:
    """One call of a model.

    Args:
        flops: qualified name of each called module → floating-point operations inside it, the
            sum over its calls; the model itself is the empty name. Matrix products, convolutions
            and attention count, element-wise operations do not.
        called: names of the called modules, in the order of their first call.
    """

    flops: dict[str, int]
    called: tuple[str, ...]


def measure(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Measurement:
    """Call ``model`` once, without gradients, and count.

    The call really happens: buffers such as running statistics change and hooks run, so give it
    a copy. Random numbers are drawn from a fork of the generators.

    Raises:
        Exception: whatever the model raises.
    """
    counter = FlopCounterMode(display=False)
    flops: dict[str, int] = {}
    started: list[int] = []
    unseen = 0

    def enter(*_: Any) -> None:
        started.append(counter.get_total_flops() + unseen)

    def leave(name: str, module: nn.Module) -> None:
        nonlocal unseen
        unseen += getattr(module, "unseen_flops", 0)
        total = counter.get_total_flops() + unseen
        flops[name] = flops.get(name, 0) + total - started.pop()

    called: dict[str, None] = {}
    handles = []
    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name)),
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(lambda module, *_, name=name: leave(name, module)),
        ]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)), counter:
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return Measurement(flops, tuple(called))
