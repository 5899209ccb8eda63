"""Modules whose forward has been rewritten to call a fused operator in place of several children.

Such a module gets a class of the same name derived from its own, in which only forward differs, as
``torch.nn.utils.parametrize`` does. Children, parameters and their names stay what they were, and
copies, pickles, traces and exports work as before.

The rewritten forward computes with the parameters of children that it does not call. A child may
change later: get a hook, be wrapped by an adapter, be quantised or sharded. Every call makes sure
that nothing of the kind has happened, and runs the original forward if it has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["Fusion", "Part", "call_hooks_of", "fuse", "fusion_of", "unfuse"]

_CALL_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def call_hooks_of(module: nn.Module) -> str:
    """Name the kinds of hooks that run when a module is called; empty if it has none."""
    kinds = [kind for kind in _CALL_HOOKS if getattr(module, kind)]
    return ", ".join(kind.strip("_").replace("_", " ") for kind in kinds)


@dataclass(frozen=True)
class Part:
    """A child that the original forward calls and the fused one does not.

    Args:
        name: qualified name within the module.
        kind: its class.
        children: names of its own children.
    """

    name: str
    kind: type[nn.Module]
    children: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module, name: str) -> Part:
        """Describe the child ``name`` of ``module`` as it is."""
        child = module.get_submodule(name)
        return cls(name, type(child), tuple(child._modules))

    def change(self, module: nn.Module) -> str:
        """Say what has changed since; empty if nothing has."""
        child: Any = module
        for step in self.name.split("."):
            child = child._modules.get(step)
            if child is None:
                return f"{self.name} is gone"
        if type(child) is not self.kind:
            return f"{self.name} has become {type(child).__name__}"
        if call_hooks_of(child):
            return f"{self.name} has hooks"
        if "forward" in child.__dict__ or tuple(child._modules) != self.children:
            return f"{self.name} has changed"
        return ""


@dataclass(frozen=True)
class Fusion:
    """A rewritten forward, and what it takes for granted.

    Args:
        forwards: function of the module and the arguments that are not fixed, by mode; ``None``
            where the original forward is to run.
        arguments: names of the original's arguments, in order.
        fixed: arguments whose value the functions have built in.
        parts: children that are not called.
        shapes: qualified name of each parameter that is read past those children → its shape,
            ``None`` for a bias that there is not.
        attributes: (name of a module, attribute) → value that the functions have built in.
        types: of all parameters, if the functions hold for these only, and not in autocast.
    """

    forwards: dict[bool, Callable[..., Any] | None]
    arguments: tuple[str, ...]
    fixed: Mapping[str, Any]
    parts: tuple[Part, ...]
    shapes: Mapping[str, torch.Size | None]
    attributes: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    types: tuple[torch.dtype, ...] | None = None

    def __deepcopy__(self, memo: Any) -> Fusion:
        return self  # it holds nothing of the module's

    def __reduce__(self) -> Any:
        return _forgotten, ()  # its functions cannot be pickled; it is found again

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """Return the values of the arguments that are not fixed, ``None`` if others are given."""
        if len(args) > len(self.arguments):
            return None
        given = dict(zip(self.arguments, args, strict=False))
        for name, value in kwargs.items():
            if name in given or name not in self.arguments:
                return None
            given[name] = value
        for name, value in self.fixed.items():
            if given.pop(name, value) is not value:
                return None
        wanted = [name for name in self.arguments if name not in self.fixed]
        return [given[name] for name in wanted] if len(given) == len(wanted) else None

    def misfit(self, module: nn.Module) -> str:
        """Say why the original forward has to run; empty if the fused one may."""
        for part in self.parts:
            change = part.change(module)
            if change:
                return change
        for name, shape in self.shapes.items():
            owner, _, last = name.rpartition(".")
            # Not by getattr, which answers a tracer with a proxy.
            tensor = module.get_submodule(owner)._parameters.get(last)
            if (None if tensor is None else tensor.shape) != shape:
                return f"{name} has another shape"
            if is_traceable_wrapper_subclass(tensor):
                return f"{name} is of a tensor class of its own"
        for (owner, attribute), value in self.attributes.items():
            if getattr(module.get_submodule(owner), attribute, _forgotten) != value:
                return f"{attribute} has changed"
        if self.types is not None and self.types != parameter_types(module):
            return "types of parameters have changed"
        return ""

    def suits(self, values: list[Any]) -> bool:
        """Return whether layers compute in the types of their parameters."""
        if self.types is None:
            return True
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        return not any(torch.is_autocast_enabled(tensor.device.type) for tensor in tensors)


def parameter_types(module: nn.Module) -> tuple[torch.dtype, ...]:
    """Return the types of a module's parameters."""
    return tuple(parameter.dtype for parameter in module.parameters())


def _forgotten() -> None:
    """Stand in for a fusion that has been pickled."""


def fuse(module: nn.Module, fusion: Fusion) -> None:
    """Give ``module`` a rewritten forward, in place."""
    module.__class__ = _fused(type(module))
    vars(module)["_fusion"] = fusion


def unfuse(module: nn.Module) -> None:
    """Give ``module`` its original forward back, in place, unless its class has changed since."""
    base = vars(type(module)).get("_qcompile_unfused")
    if base is not None:
        module.__class__ = base
        del vars(module)["_fusion"]


def fusion_of(module: nn.Module) -> Fusion | None:
    """Return how a module's forward was rewritten, ``None`` if it was not."""
    found: Fusion | None = vars(module).get("_fusion")
    return found


def _fused(base: Any) -> Any:
    """Return the class derived from ``base``; the base keeps it, so that there is one."""
    if "_qcompile_fused" not in vars(base):
        base._qcompile_fused = _derive(base)
    return base._qcompile_fused


def _derive(base: Any) -> Any:
    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        fusion: Any = self._fusion
        fused: Any = None if fusion is None else fusion.forwards[self.training]
        values = None if fused is None else fusion.bind(args, kwargs)
        if values is None or fusion.misfit(self) or not fusion.suits(values):
            return base.forward(self, *args, **kwargs)
        return fused(self, *values)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:  # noqa: N807
        # The class has no importable name: rebuild it from its base.
        rebuild, arguments, *rest = base.__reduce_ex__(self, protocol)
        plain = tuple(base if argument is type(self) else argument for argument in arguments)
        return _rebuild, (rebuild, plain), *rest

    def __setstate__(self: nn.Module, state: Any) -> None:  # noqa: N807
        base.__setstate__(self, state)
        if fusion_of(self) is None:
            from qcompile.passes.fx.fuse_hadamard import fuse_again

            self.__class__ = base
            fuse_again(self)

    namespace = {
        "forward": forward,
        "__reduce_ex__": __reduce_ex__,
        "__setstate__": __setstate__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_qcompile_unfused": base,
        "_fusion": None,  # of copies that a module makes of itself
    }
    return type(base)(base.__name__, (base,), namespace)


def _rebuild(rebuild: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    """Undo the pickling of a fused module; its state follows."""
    module = rebuild(*arguments)
    module.__class__ = _fused(type(module))
    return module
