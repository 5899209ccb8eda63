"""Quadratic blocks of convolutions, and a whole training step of QVGG-7."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from quadratic_memory import Composed
from torch import nn

import qcompile
from gpu.linear import OURS, compile_modes
from qcompile.models import qvgg7
from qcompile.nn import QuadraticBlock, QuadraticConv2d

__all__ = [
    "LEVELS",
    "BlockCase",
    "NetworkCase",
    "block",
    "block_cases",
    "block_contestants",
    "composed",
    "step_contestants",
]

LEVELS = (0, 1, 3)
LOWERED: torch.dtype | None = torch.bfloat16
"""Type of autocast; ``None`` for none."""


@dataclass(frozen=True)
class BlockCase:
    """One block on images of side × side, by autocast to bfloat16."""

    batch: int
    channels: int
    side: int


@dataclass(frozen=True)
class NetworkCase:
    """One training step of QVGG-7 on images of 32×32, by autocast to bfloat16."""

    batch: int
    scale: float = 1.0


def block_cases(quick: bool) -> list[BlockCase]:
    """List blocks of QVGG-7."""
    shapes = [(128, 64, 32), (128, 256, 8)] if quick else [(512, 64, 32), (512, 128, 16)]
    return [BlockCase(*shape) for shape in shapes] + ([] if quick else [BlockCase(512, 256, 8)])


def block(level: int, channels: int) -> QuadraticBlock:
    """Return a 3×3 block with batch norms of the branches and of their combination, and a ReLU."""
    torch.manual_seed(0)
    layer = QuadraticConv2d(channels, channels, 3, padding=1, bias=False)
    made: QuadraticBlock = _spread(QuadraticBlock(layer, "both", nn.ReLU(), memory=level))
    return made


def composed(original: QuadraticBlock) -> Composed:
    """Return the same block of torch's own layers."""
    made = Composed(original, "all")
    for letter, norm in original.branch_norms.items():
        getattr(made, f"bn_{letter}").load_state_dict(norm.state_dict())
    assert original.norm is not None
    made.bn.load_state_dict(original.norm.state_dict())
    return made


def block_contestants(
    case: BlockCase, quick: bool, device: str = "cuda"
) -> dict[str, Callable[[], Any]]:
    """Return who trains a block, by name; each call makes a forward and a backward pass."""
    size = case.batch, case.channels, case.side, case.side
    x = torch.randn(size, device=device).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()

    models: dict[str, Any] = {
        f"{OURS}, level {level}": block(level, case.channels) for level in LEVELS
    }
    models |= _others(composed(block(0, case.channels)), quick)
    grad = torch.randn_like(x, dtype=torch.bfloat16)
    return {
        name: _training(model, x, lambda y: y.backward(grad.to(y.dtype)))
        for name, model in models.items()
    }


def step_contestants(
    case: NetworkCase, quick: bool, device: str = "cuda"
) -> dict[str, Callable[[], Any]]:
    """Return who trains the network, by name; each call is a step without the optimiser's."""
    x = torch.randn(case.batch, 3, 32, 32, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (case.batch,), device=device)

    def network(level: int) -> Any:
        torch.manual_seed(0)
        return _spread(qvgg7(scale=case.scale, memory=level))

    models: dict[str, Any] = {f"{OURS}, level {level}": network(level) for level in LEVELS}
    models[f"{OURS}, merged"] = qcompile.merge_parallel(network(0))
    rival = network(0)
    rival.features = nn.Sequential(*(composed(part) for part in rival.features))
    models |= _others(rival, quick)
    loss = nn.functional.cross_entropy
    return {
        name: _training(model, x, lambda y: loss(y, labels).backward())
        for name, model in models.items()
    }


def _spread(model: Any) -> Any:
    """Give batch norms scales as training does; some begin at zero, which would hide a branch."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def _others(rival: nn.Module, quick: bool) -> dict[str, Any]:
    """Return a network of torch's own layers, as it is and compiled."""
    torch._dynamo.reset()
    compiled = {
        name: torch.compile(rival, mode=mode)
        for name, mode in compile_modes(quick, graphs=True).items()
    }
    return {"eager": rival, **compiled}


def _training(model: Any, x: torch.Tensor, finish: Callable[[Any], None]) -> Callable[[], Any]:
    model = model.to(device=x.device, memory_format=torch.channels_last)

    def step() -> torch.Tensor:
        with torch.autocast(x.device.type, LOWERED, enabled=LOWERED is not None):
            y = model(x)
        finish(y)
        # Gradients that stay would count as there before the next contestant.
        model.zero_grad(set_to_none=True)
        x.grad = None
        return y.detach()

    return step
