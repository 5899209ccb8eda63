"""``model(x, target=labels)`` for a model of any class that has a sparse output layer.

Calling the model with a target carries the target past the model's own forward to the output
layer, which gets it beside its input and answers ``(output, loss)``. That pair is the result of
the call: the forward ends there, so what it would have done with the scores (a softmax, a
data class) does not run, nor do forward hooks of the modules that contain the output layer.

The model gets a class of the same name derived from its own, in which only calling differs, as
``torch.nn.utils.parametrize`` does. Its forward, signature, methods and parameter names stay as
they were, and copies, pickles, traces and exports work as before. Calls in several threads do not
see each other's targets. A call of an output layer that ``torch.utils.checkpoint`` repeats during
the backward pass gets the target that it had.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from qcompile.errors import DataError
from qcompile.recompute import Recent, recomputing

__all__ = ["accept_target", "keyword"]


class _Request:
    """The targets of one call that have not reached their output layer yet, and the results."""

    def __init__(self, target: Any) -> None:
        self.several = isinstance(target, Mapping)
        self.waiting = dict(target) if self.several else {None: target}
        self.results: dict[str, Any] = {}
        self.with_grad = torch.is_grad_enabled()

    def claims(self, name: str) -> bool:
        """Return whether the output layer called ``name`` has a target waiting."""
        return name in self.waiting or not self.several


class _Finished(BaseException):
    """Ends a forward once every target has been used; models may catch Exception, not this."""

    def __init__(self, request: _Request) -> None:
        self.request = request


_current: ContextVar[_Request | None] = ContextVar("qcompile_target", default=None)


class _Link:
    """Hooks of one output layer: fetch its target, deliver its result."""

    def __init__(self, name: str, heads: tuple[str, ...]) -> None:
        self.name, self.heads = name, heads
        self._recent = Recent()

    def fetch(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the waiting target to the arguments (forward pre-hook)."""
        request = _current.get()
        hidden = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if request is None and hidden is not None and recomputing():
            target = self._recent.get(hidden)
            return None if target is None else (args, {**kwargs, "target": target})
        if request is None or not request.claims(self.name):
            return None
        if not request.several and len(self.heads) > 1:
            raise DataError(
                f"the model has the output layers {', '.join(self.heads)}: the target must be a "
                f"mapping from their names to labels."
            )
        key = self.name if request.several else None
        if hidden is not None:
            self._recent.put(hidden, request.waiting[key])
        return args, {**kwargs, "target": request.waiting[key]}

    def deliver(self, head: nn.Module, args: Any, result: Any) -> None:
        """Keep the result, and end the model's forward if it was the last (forward hook)."""
        request = _current.get()
        if request is None or not request.claims(self.name):
            return
        if head.training and request.with_grad and not torch.is_grad_enabled():
            raise DataError(
                f"the model's forward calls its output layer {self.name!r} without gradients, as "
                f"under torch.no_grad or a reentrant checkpoint, so that the loss could not be "
                f"trained; use torch.utils.checkpoint(..., use_reentrant=False)."
            )
        request.waiting.pop(self.name if request.several else None)
        request.results[self.name] = result
        if not request.waiting:
            raise _Finished(request)


def accept_target(model: nn.Module, heads: Mapping[str, nn.Module]) -> None:
    """Make ``model(..., target=labels)`` return what its output layer returns for them.

    With several output layers the target is a mapping from their names to labels, and the result
    a mapping from names to pairs; a result that is not the last stands in for the layer's scores
    in the rest of the forward, which must not compute with it.

    Args:
        model: the model; its class changes in place.
        heads: output layers by qualified name; their forward takes ``(hidden, target)``.
    """
    for name, head in heads.items():
        link = _Link(name, tuple(heads))
        head.register_forward_pre_hook(link.fetch, with_kwargs=True)
        head.register_forward_hook(link.deliver)
    if not hasattr(type(model), "_qcompile_base"):
        model.__class__ = _routed(type(model))


def keyword(kind: type[nn.Module]) -> str:
    """Return the argument that carries the target: ``target``, unless the forward has its own."""
    own = inspect.signature(kind.forward).parameters
    return "sparse_target" if "target" in own else "target"


def _routed(base: Any) -> Any:
    """Return the class derived from ``base`` whose instances take a target when called.

    The base keeps it, so that there is one, which lives as long as the base does.
    """
    if "_qcompile_routed" not in vars(base):
        base._qcompile_routed = _derive(base)
    return base._qcompile_routed


def _derive(base: Any) -> Any:
    word = keyword(base)
    graph_call = vars(base).get("_wrapped_call")

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        target = kwargs.pop(word, None)
        call = functools.partial(graph_call or base.__call__, self, *args, **kwargs)
        return call() if target is None else _answer(call, target, self)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:  # noqa: N807
        # The class has no importable name: rebuild it from its base.
        rebuild, arguments, *rest = base.__reduce_ex__(self, protocol)
        plain = tuple(base if argument is type(self) else argument for argument in arguments)
        return _rebuild, (rebuild, plain), *rest

    def __deepcopy__(self: nn.Module, memo: Any) -> Any:  # noqa: N807
        copied = base.__deepcopy__(self, memo)
        copied.__class__ = _routed(type(copied))
        return copied

    namespace: dict[str, Any] = {
        "__call__": __call__,
        "__reduce_ex__": __reduce_ex__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_qcompile_base": base,
    }
    if graph_call is not None:
        # GraphModule.recompile puts a __call__ of its own in place, which calls this.
        namespace["_wrapped_call"] = staticmethod(__call__)
    if hasattr(base, "__deepcopy__"):
        namespace["__deepcopy__"] = __deepcopy__
    return type(base)(base.__name__, (base,), namespace)


def _rebuild(rebuild: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    """Undo the pickling of a routed model; its state follows."""
    model = rebuild(*arguments)
    model.__class__ = _routed(type(model))
    return model


def _answer(call: Callable[[], Any], target: Any, model: nn.Module) -> Any:
    request = _Request(target)
    token = _current.set(request)
    try:
        call()
    except _Finished as finished:
        if finished.request is not request:
            raise
        results = request.results
        return results if request.several else next(iter(results.values()))
    finally:
        _current.reset(token)
    missing = ", ".join(str(name) for name in request.waiting if name) or "its output layer"
    raise DataError(
        f"{type(model).__name__} was called with a target but its forward did not reach {missing}."
    )
