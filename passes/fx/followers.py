"""What follows a layer in a model's forward: the batch norm and the activation that are its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from qcompile.passes.fx.dataflow import Value
from qcompile.passes.fx.layers import hooks_of
from qcompile.passes.fx.tracing import Trace

__all__ = ["Followers", "Found"]

_ACTIVATIONS = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
    *(nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU),
    *(nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink),
)
_FUNCTIONS = frozenset(
    {kind.__name__.lower() for kind in _ACTIVATIONS} | {"leaky_relu", "log_sigmoid", "rrelu"}
)


@dataclass(frozen=True)
class Found:
    """A module that follows another, or why there is none to speak of.

    Args:
        module: the module.
        reason: why there is none; empty if nothing of the kind follows at all.
        name: qualified name of what follows, for people.
    """

    module: nn.Module | None = None
    reason: str = ""
    name: str = ""


class Followers:
    """Answers what follows a module, from one trace of ``model``."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._flow = trace.flow
        self._read = {model.get_submodule(name) for name in trace.read}
        self._modules = dict(model.named_modules())
        self._users: dict[int, list[Value]] = {}
        for value in self._flow.values if self._flow else ():
            for source in {id(source): source for source in value.inputs}.values():
                self._users.setdefault(id(source), []).append(value)

    def norm(self, layer: nn.Module) -> Found:
        """Find the batch norm that normalises each output of ``layer`` and nothing else."""
        if self._flow is None:
            return Found(reason="without a trace it is not known what follows")
        found = self._next(layer)
        norm = found.module
        if norm is None or not isinstance(norm, nn.modules.batchnorm._NormBase):
            return Found()
        reason = (
            found.reason
            or _obstacle_of_norm(layer, norm)
            or ("its parameters are read elsewhere" if norm in self._read else "")
        )
        return Found(None if reason else norm, f"{found.name} stays: {reason}" if reason else "")

    def activation(self, module: nn.Module) -> Found:
        """Find the activation that takes each output of ``module`` and nothing else."""
        if self._flow is None:
            return Found(reason="without a trace it is not known what follows")
        found = self._next(module)
        follower = found.module
        if follower is None:
            return found if found.name in _FUNCTIONS else Found()
        if type(follower) not in _ACTIVATIONS:
            return Found()
        hooks = hooks_of(follower)
        reason = found.reason or (f"it has {hooks}, which would be lost" if hooks else "")
        return Found(None if reason else follower, reason, found.name)

    def _next(self, module: nn.Module) -> Found:
        """Find the one module that reads every output of ``module``; a reason says what else."""
        assert self._flow is not None
        owners = {id(value): self._modules[value.owner] for value in self._flow.values}
        own = [value for value in self._flow.values if owners[id(value)] is module]
        outside = {
            id(value): [user for user in self._users.get(id(value), []) if user not in own]
            for value in own
        }
        readers = [user for users in outside.values() for user in users]
        if not readers:
            return Found()
        follower = owners[id(readers[0])]
        name = next(name for name, known in self._modules.items() if known is follower)
        if any(self._modules[name] is not follower for name in {user.owner for user in readers}):
            return Found(follower, "more than it reads the output of the layer", name)
        if next(follower.children(), None) is not None or follower is self._modules[""]:
            operation = readers[0].operation.rstrip("_")
            return Found(None, f"{operation} is called in code, not as a module", operation)
        if any(value in self._flow.outputs for value in own) or any(
            len(users) > 1 for users in outside.values()
        ):
            return Found(follower, "more than it reads the output of the layer", name)
        calls = [
            value
            for value in self._flow.values
            if owners[id(value)] is follower
            and not value.operation.startswith("add")  # a batch norm counts its batches
            and any(owners.get(id(source)) is not follower for source in value.inputs)
        ]
        if any(owners.get(id(call.inputs[0])) is not module for call in calls):
            return Found(follower, "it is also called on other values", name)
        return Found(follower, "", name)


def _obstacle_of_norm(layer: nn.Module, norm: nn.Module) -> str:
    """Say why a batch norm cannot move into a block, if it cannot."""
    from qcompile.nn.quadratic.block import BATCH_NORMS

    dims = len(getattr(layer, "kernel_size", (1,)))
    if type(norm) is not BATCH_NORMS[dims]:
        return f"{type(norm).__name__} is no {BATCH_NORMS[dims].__name__}"
    hooks = hooks_of(norm)
    if hooks:
        return f"it has {hooks}, which would be lost"
    width = getattr(layer, "out_features", None) or getattr(layer, "out_channels", None)
    if norm.num_features != width:
        return f"it normalises {norm.num_features} channels, not the layer's {width}"
    return ""
