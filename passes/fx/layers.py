"""First-order layers: finding them in a model, judging whether one can be exchanged, doing it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from qcompile.passes.fx.tracing import Trace, disable_fast_path

__all__ = [
    "FIRST_ORDER",
    "ROOT",
    "Layer",
    "as_plain",
    "find_layers",
    "hooks_of",
    "obstacle",
    "obstacle_of_type",
    "replace_modules",
]

First = TypeVar("First", bound=nn.Module)

FIRST_ORDER = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

ROOT = "(the model itself)"
"""What reports call a layer that is the whole model and so has an empty name."""

_COMPUTES_THE_SAME = frozenset({"timm.layers.linear.Linear"})
"""Subclasses that override forward and still compute what their base class computes."""

_TYPES = frozenset(
    {
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    }
)
"""Types that torch initialises and computes with; those of eight bits are for storage."""

_HOOK_KINDS = (
    "forward_pre_hooks",
    "forward_hooks",
    "backward_pre_hooks",
    "backward_hooks",
    "state_dict_hooks",
    "state_dict_pre_hooks",
    "load_state_dict_pre_hooks",
    "load_state_dict_post_hooks",
)


@dataclass(frozen=True, eq=False)
class Layer:
    """A module with a weight matrix, and what the rest of the model does with it.

    Args:
        module: the module.
        names: every qualified name that it goes by.
        tied: names of other modules that hold one of its parameters.
        called: whether the traced forward calls it; ``None`` without a trace.
        read: whether the forward of another module reads its parameters.
    """

    module: nn.Module
    names: tuple[str, ...]
    tied: tuple[str, ...]
    called: bool | None
    read: bool

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def label(self) -> str:
        """The name for people."""
        return self.name or ROOT

    @property
    def parameters(self) -> int:
        """Number of weights it holds, as far as their shape is known."""
        return sum(p.numel() for p in self.module.parameters() if not is_lazy(p))


def find_layers(model: nn.Module, trace: Trace) -> list[Layer]:
    """List the modules of ``model`` that hold a weight matrix, in the order of their first call.

    Embeddings look their weight up rather than multiply by it, and are left out.
    """
    names: dict[nn.Module, list[str]] = {}
    holders: dict[int, dict[str, None]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for module, known in names.items():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), {})[known[0]] = None
    called = None if trace.called is None else [model.get_submodule(name) for name in trace.called]
    read = {model.get_submodule(name) for name in trace.read}
    known_calls = None if called is None else set(called)
    layers = []
    for module in dict.fromkeys([*(called or ()), *names]):
        if not _has_weight_matrix(module):
            continue
        own = [id(parameter) for parameter in module.parameters(recurse=False)]
        tied = {other: None for key in own for other in holders[key] if other != names[module][0]}
        is_called = None if known_calls is None else module in known_calls
        layers.append(Layer(module, tuple(names[module]), tuple(tied), is_called, module in read))
    return layers


def _has_weight_matrix(module: nn.Module) -> bool:
    from qcompile.nn.quadratic import QuadraticLayer

    if isinstance(module, QuadraticLayer):
        return True
    if isinstance(module, FIRST_ORDER):
        return True
    weight = module._parameters.get("weight")
    if weight is None or is_lazy(weight) or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return False
    return weight.dim() >= 2


def obstacle(layer: Layer) -> str | None:
    """Say why a first-order layer cannot be exchanged without losing something, if it cannot."""
    module = layer.module
    return obstacle_of_type(module) or _obstacle_of_state(module) or _obstacle_of_use(layer)


def obstacle_of_type(module: nn.Module) -> str | None:
    """Say why a module's class does not compute what a first-order layer does, if it does not."""
    if not isinstance(module, FIRST_ORDER):
        return f"{type(module).__name__} has no counterpart"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "its weight is read by nn.MultiheadAttention, which never calls it"
    if is_parametrized(module):
        names = dict(module.get_submodule("parametrizations").named_children())
        return f"its {', '.join(names)} is parametrised"
    kind = type(module)
    base = next(base for base in FIRST_ORDER if issubclass(kind, base))
    same = f"{kind.__module__}.{kind.__qualname__}" in _COMPUTES_THE_SAME
    methods = ("forward", "_conv_forward", "__call__")
    changed = [
        name for name in methods if getattr(kind, name, None) is not getattr(base, name, None)
    ]
    if changed and not same:
        return f"{kind.__module__}.{kind.__name__} overrides {changed[0]} of {base.__name__}"
    return None


def hooks_of(module: nn.Module) -> str:
    """Name the kinds of hooks that a module has; empty if it has none."""
    kinds = [kind for kind in _HOOK_KINDS if getattr(module, f"_{kind}", None)]
    return ", ".join(kind.replace("_", " ") for kind in kinds)


def _obstacle_of_state(module: nn.Module) -> str | None:
    weight = module._parameters.get("weight")
    if weight is not None and is_lazy(weight):
        return "its size is not known yet: run the model once first"
    hooks = hooks_of(module)
    if hooks:
        return f"it has {hooks}, which would be lost"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if weight is None:
        return "its weight is not a parameter"
    if weight.dtype not in _TYPES:
        return f"its weight is of type {weight.dtype}"
    for parameter in module.parameters(recurse=False):
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return "a parameter of it has a hook, which would be lost"
    return None


def _obstacle_of_use(layer: Layer) -> str | None:
    if layer.called is False:
        mode = "training" if layer.module.training else "eval"
        why = ": its weight is read directly" if layer.read else ""
        return f"the forward, traced in {mode} mode, never calls it{why}"
    if layer.read:
        return "its weight is also read directly by the forward of another module"
    return None


def as_plain(module: nn.Module, *bases: type[First]) -> First:
    """Return a view of ``module``, same parameters, whose type is the base that it derives from."""
    base = next(base for base in bases if isinstance(module, base))
    plain = copy.copy(module)
    plain.__class__ = base
    return cast(First, plain)


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each new module in the place of the old one, at every name that the old one has.

    Returns:
        The model, or its replacement if it is itself replaced.
    """
    parents = list(model.modules())
    for parent in parents:
        if parent in new:
            continue
        for key, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[key] = new[child]
    for parent in parents:
        _disable_stale_fast_path(parent)
    return new.get(model, model)


def _disable_stale_fast_path(module: nn.Module) -> None:
    """Keep torch's encoder from reading ``linear1.weight`` of a layer that has no such weight."""
    encoder_layers: Iterable[Any] = ()
    if isinstance(module, nn.TransformerEncoderLayer):
        encoder_layers = [module]
    elif isinstance(module, nn.TransformerEncoder):
        encoder_layers = module.layers
    if _exchanged(encoder_layers):
        disable_fast_path(module)


def _exchanged(layers: Iterable[Any]) -> bool:
    """Return whether a feed-forward layer in any of the encoder layers is no longer first-order."""
    return any(
        not isinstance(getattr(layer, name, None), nn.Linear | None)
        for layer in layers
        for name in ("linear1", "linear2")
    )
