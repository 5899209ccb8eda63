"""Traces what a module's own forward does, its children taken as they are.

A model whose forward no tracer can follow still consists of modules, and most of their forwards are
a few lines that compute. Only containers and activations without a state of their own are looked
into, so that a rewritten forward keeps calling every child that matters.

What a trace takes for granted is recorded: the plain values that the forward read from the modules'
attributes and the arguments that were left at their defaults.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from qcompile.fused import call_hooks_of
from qcompile.passes.fx.tracing import Scalar, fixed_arguments

__all__ = ["ACTIVATIONS_BY_HAND", "OwnForward", "trace_own_forward"]

ACTIVATIONS_BY_HAND = {
    "transformers.activations.AccurateGELUActivation": "gelu_tanh",
    "transformers.activations.FastGELUActivation": "gelu_tanh",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
}
"""Modules that spell an activation out, step by step."""

_OWN = frozenset(dir(nn.Module()))
"""Attributes that nn.Module needs for itself."""

_PLAIN = (bool, int, float, str, type(None), FunctionType, BuiltinFunctionType)
"""Types of attributes that can be compared after a model has been copied."""

_IN_PLACE = frozenset(
    {f"__i{name}__" for name in ("add", "div", "floordiv", "mul", "pow", "sub", "truediv")}
    | {"__iand__", "__ior__", "__ixor__", "__setitem__"}
)
"""Operators that change their first operand."""


@dataclass(frozen=True)
class OwnForward:
    """One trace of a module's own forward.

    Args:
        graph: the operations; targets are names within the module.
        arguments: names of the forward's positional arguments, in order.
        fixed: those that keep their default, with its value.
        inlined: names of the children that were looked into.
        attributes: (name of a module, attribute) → the plain value that was read.
        reads_types: whether the forward asked for the type of a value, so that the trace holds
            for the types of the parameters only.
    """

    graph: fx.Graph
    arguments: tuple[str, ...]
    fixed: dict[str, Scalar]
    inlined: tuple[str, ...]
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    reads_types: bool = False


def trace_own_forward(module: nn.Module, original: nn.Module, training: bool) -> OwnForward:
    """Trace the forward of ``module`` in one mode.

    Args:
        module: a copy without hooks, which is left as it was.
        original: what it is a copy of.
        training: the mode.

    Raises:
        Exception: whatever the forward raises when it meets values that are not known yet.
        ValueError: the forward does what a trace cannot repeat; the message says what.
    """
    tracer = _Tracer(original)
    before = dict(vars(module))
    fixed = fixed_arguments(module, None)
    try:
        module.training = training
        with _watched(module, original, tracer), _RefuseChanges():
            graph = tracer.trace(module, concrete_args=fixed)
        stored = [
            name
            for name, value in vars(module).items()
            if name != "training" and before.get(name) is not value
        ]
    finally:
        vars(module).clear()
        vars(module).update(before)
    if stored:
        raise ValueError(f"it stores {', '.join(stored)}")
    arguments = _drop_fixed(graph, module, fixed)
    return OwnForward(
        graph, arguments, fixed, tuple(tracer.inlined), tracer.read, tracer.reads_types
    )


def _drop_fixed(graph: fx.Graph, module: nn.Module, fixed: dict[str, Scalar]) -> tuple[str, ...]:
    """Remove the arguments that keep their default, and return the names of all."""
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(module.forward).parameters.values()
    names = tuple(p.name for p in signature if p.kind not in various)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for name, node in zip(names, placeholders, strict=False):
        if name in fixed:
            for user in list(node.users):  # fx asserts that the value stays what it was
                for check in [*user.users, user]:
                    graph.erase_node(check)
            graph.erase_node(node)
    for node in placeholders[len(names) :]:
        if node.users:
            raise ValueError(f"it uses {node.target}")
        graph.erase_node(node)
    return names


class _Proxy(fx.Proxy):
    """A value whose type is known where it comes from a layer that has one."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Refuse ``isinstance``, which would be answered as for no tensor.

        Built-in functions of torch ask, too, whatever they are called from.
        """
        caller = sys._getframe(1)
        room = caller.f_globals.get("__name__", "").partition(".")[0]
        if "isinstance" in caller.f_code.co_names and room not in ("torch", "qcompile"):
            raise TypeError("it asks for the class of a value")
        return type(self)

    @property
    def dtype(self) -> Any:
        """Return the type, or a stand-in for it where it is not known."""
        tracer: Any = self.tracer
        known = tracer.type_of(self.node)
        return fx.proxy.Attribute(self, "dtype") if known is None else known


class _RefuseChanges(TorchFunctionMode):
    """Refuses to change real tensors, which a trace would do once instead of recording it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(getattr(func, "__name__", ""))
        in_place = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE
        if in_place and args and isinstance(args[0], torch.Tensor):
            raise ValueError(f"it changes a tensor in place, by {name}")
        return func(*args, **(kwargs or {}))


class _Tracer(fx.Tracer):
    """Records calls of children and what the forward reads from the modules' attributes."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.inlined: dict[str, None] = {}
        self.read: dict[tuple[str, str], Any] = {}
        self.reads_types = False

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Look into containers and activations that nobody watches by a hook."""
        original = self.original.get_submodule(qualified_name)
        if call_hooks_of(original) or not _is_transparent(original):
            return True
        self.inlined[qualified_name] = None
        return False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node."""
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Answer with the tensor itself, of which a forward may ask anything."""
        return attr_val

    def type_of(self, node: fx.Node) -> torch.dtype | None:
        """Return the type that a value has if the inputs are of the layers' type."""
        found = set(self._types(node, set()))
        if len(found) != 1:
            return None
        self.reads_types = True
        return found.pop()

    def _types(self, node: fx.Node, seen: set[fx.Node]) -> Iterator[torch.dtype | None]:
        if node in seen:
            return
        seen.add(node)
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if isinstance(module, nn.Linear):
                yield module.weight.dtype
                return
        if node.op == "placeholder" or node.target in ("to", "float", "half", "double", "type"):
            yield None
        for source in node.all_input_nodes:
            yield from self._types(source, seen)


def _is_transparent(module: nn.Module) -> bool:
    kind = type(module)
    if kind is nn.Sequential:
        return True
    if f"{kind.__module__}.{kind.__qualname__}" in ACTIVATIONS_BY_HAND:
        return False
    if any(True for _ in (*module.parameters(), *module.buffers())) or module._modules:
        return False
    known = kind.__module__.startswith("torch.nn")
    return not known and isinstance(getattr(kind, "forward", None), FunctionType)


@contextmanager
def _watched(module: nn.Module, original: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Let a module, and the children that are looked into, tell what is read of them."""
    kinds: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for name, child in module.named_modules():
            if not name or _is_transparent(original.get_submodule(name)):
                kinds.append((child, type(child)))
                child.__class__ = _recording(type(child), name, tracer)
        yield
    finally:
        for child, kind in kinds:
            child.__class__ = kind


def _recording(base: Any, name: str, tracer: _Tracer) -> Any:
    """Derive a class whose instances note which plain attributes are read."""

    def note(attribute: str, value: Any) -> Any:
        if attribute not in _OWN and not attribute.startswith("__") and isinstance(value, _PLAIN):
            tracer.read[name, attribute] = value
        return value

    def __getattribute__(self: Any, attribute: str) -> Any:  # noqa: N807
        return note(attribute, base.__getattribute__(self, attribute))

    def __getattr__(self: Any, attribute: str) -> Any:  # noqa: N807
        return note(attribute, base.__getattr__(self, attribute))

    namespace = {
        "__getattribute__": __getattribute__,
        "__getattr__": __getattr__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
    }
    return type(base)(base.__name__, (base,), namespace)
