"""Finds out what a model's forward does, by the lightest means that works.

``torch.fx.symbolic_trace`` needs no inputs and is quick, but gives up at Python control flow that
depends on data. ``torch.export`` follows one call on example inputs. Where both fail, running the
model on the inputs still tells which modules are called; without inputs nothing is known, and a
pass has to go by the module tree alone.

The model itself is never traced: a copy is, which shares its parameters and has no hooks, so that
nothing a forward stores, counts or mutates while it is traced stays behind. A copy that cannot run
without its hooks keeps them.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from qcompile.flops import Measurement
from qcompile.passes.fx.dataflow import Dataflow, read_graph
from qcompile.passes.fx.inputs import Inputs

__all__ = [
    "EXPORT",
    "NONE",
    "RUN",
    "SYMBOLIC",
    "Failure",
    "Inputs",
    "Scalar",
    "Trace",
    "fixed_arguments",
    "full_copy",
    "locate",
    "scratch_copy",
    "trace",
]

SYMBOLIC, EXPORT, RUN, NONE = "torch.fx.symbolic_trace", "torch.export", "a run", "none"

Scalar = int | float | bool | str | None
_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@dataclass(frozen=True)
class Failure:
    """Why one tracer gave up.

    Args:
        tracer: its name.
        error: what it raised.
        module: qualified name of the innermost module that was running, empty for the model.
        location: ``file:line`` of the innermost line outside torch, or empty.
    """

    tracer: str
    error: Exception
    module: str = ""
    location: str = ""

    def __str__(self) -> str:
        reason = (str(self.error).strip() or type(self.error).__name__).splitlines()[0]
        where = f"module {self.module!r}" if self.module else "the model's own forward"
        return f"{self.tracer} failed in {where} ({self.location or 'no source'}): {reason}"


@dataclass(frozen=True)
class Trace:
    """What is known of a model's forward.

    Args:
        tracer: the tracer that succeeded.
        called: names of the modules that run, in order of their first call, or ``None``.
        read: names of modules whose parameters are read by the forward of another module.
        flow: the values computed, or ``None``.
        failures: tracers that gave up before.
    """

    tracer: str
    called: tuple[str, ...] | None = None
    read: frozenset[str] = frozenset()
    flow: Dataflow | None = None
    failures: tuple[Failure, ...] = ()


def trace(
    model: nn.Module,
    inputs: Inputs | None = None,
    measurement: Measurement | None = None,
    *,
    hooks: bool = False,
) -> Trace:
    """Trace ``model`` without changing it.

    Args:
        model: any module.
        inputs: arguments of one call, which torch.export needs.
        measurement: of one call on ``inputs``.
        hooks: whether the forward needs the model's hooks.
    """
    tracers: list[tuple[str, Callable[[nn.Module], Dataflow]]] = [
        (SYMBOLIC, lambda copied: _symbolic(copied, inputs))
    ]
    if inputs is not None:
        tracers.append((EXPORT, lambda copied: _export(copied, inputs)))
    failures: list[Failure] = []
    for name, tracer in tracers:
        try:
            copied = scratch_copy(model, hooks=hooks)
        except Exception as error:  # an attribute may refuse with anything at all
            return Trace(NONE, failures=(locate("copying the model", error, model),))
        try:
            with torch.random.fork_rng(devices=[]):
                flow = tracer(copied)
        except Exception as error:  # a model's forward may raise anything at all
            failures.append(locate(name, error, copied))
        else:
            called = _called(copied, flow)
            if measurement is not None:  # what really runs, whatever a tracer made of it
                called |= dict.fromkeys(measurement.called)
            read = _read_directly(copied, flow)
            return Trace(name, tuple(called), read, flow, tuple(failures))
    if measurement is not None:
        return Trace(RUN, measurement.called, failures=tuple(failures))
    return Trace(NONE, failures=tuple(failures))


def scratch_copy(model: nn.Module, *, hooks: bool = False) -> nn.Module:
    """Return a copy that shares parameters with ``model``, has its own buffers and no hooks.

    Args:
        model: any module.
        hooks: keep the hooks.

    Raises:
        Exception: whatever an attribute that cannot be copied raises.
    """
    # A lazy parameter takes its shape from the first call, which must not be one on the copy.
    shared = [tensor for tensor in model.parameters() if not is_lazy(tensor)]
    copied = full_copy(model, shared)
    for module in copied.modules():
        for kind in () if hooks else _HOOKS:
            getattr(module, kind, {}).clear()
        disable_fast_path(module)
    return copied


def full_copy(model: nn.Module, shared: Iterable[torch.Tensor] = ()) -> nn.Module:
    """Return a deep copy, but for the tensors ``shared``.

    Tensors that a forward left behind as attributes, as weight norm and pruning do, are copied
    without the operations behind them, where copy.deepcopy gives up.

    Raises:
        Exception: whatever an attribute that cannot be copied raises.
    """
    known: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                known[id(value)] = value.detach().clone()
    return copy.deepcopy(model, known)


def disable_fast_path(module: nn.Module) -> None:
    """Make torch's encoder call its layers, as training does, in place of one fused operator."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False


class _LeafTracer(fx.Tracer):
    """Takes a layer of a known type for one operation, in whatever package its class lives."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Return whether to record the call of ``module`` without looking inside."""
        from qcompile.nn.hashed import Hashed
        from qcompile.nn.quadratic import QuadraticBlock, QuadraticLayer
        from qcompile.nn.row_sparse import RowSparse

        quadratic = (QuadraticLayer, QuadraticBlock)
        layers = (nn.Linear, nn.modules.conv._ConvNd, *quadratic, Hashed, RowSparse)
        return isinstance(module, layers) or super().is_leaf_module(module, qualified_name)


def _symbolic(model: nn.Module, inputs: Inputs | None) -> Dataflow:
    tracer = _LeafTracer()
    graph = tracer.trace(model, concrete_args=fixed_arguments(model, inputs))
    return read_graph(graph, model, {})


def fixed_arguments(model: nn.Module, inputs: Inputs | None) -> dict[str, Scalar]:
    """Return arguments that keep their default, or the plain value that the example gives.

    Left open, ``if mask is not None`` would follow the branch of a call that passes a mask.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = dict(zip((p.name for p in named), inputs.args if inputs else (), strict=False))
    given |= inputs.kwargs if inputs else {}
    values = {p.name: given.get(p.name, p.default) for p in named}
    return {name: value for name, value in values.items() if isinstance(value, Scalar)}


def _export(model: nn.Module, inputs: Inputs | None) -> Dataflow:
    assert inputs is not None
    # Outputs may be of types that torch.export does not know, a cache or a data class.
    handle = model.register_forward_hook(lambda _, args, output: list(_tensors(output)))
    try:
        program = torch.export.export(model, inputs.args, inputs.kwargs, strict=False)
    finally:
        handle.remove()
    signature = program.graph_signature
    graph = program.graph
    flow = read_graph(graph, program.graph_module, dict(signature.inputs_to_parameters))
    # In training, updated buffers are outputs too; they come first.
    count = sum(isinstance(name, str) for name in signature.user_outputs)
    return Dataflow(flow.values, flow.outputs[len(flow.outputs) - count :])


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested containers, in order."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(output):
        yield from _tensors([getattr(output, f.name) for f in dataclasses.fields(output)])


def _called(model: nn.Module, flow: Dataflow) -> dict[str, None]:
    """List the modules that compute a value; in a module called whole, all that it contains."""
    names: dict[str, None] = {}
    for value in flow.values:
        names.setdefault(value.owner)
        if value.opaque:
            inner = model.get_submodule(value.owner).named_modules(prefix=value.owner)
            names.update(dict.fromkeys(name for name, _ in inner))
    return names


def _read_directly(model: nn.Module, flow: Dataflow) -> frozenset[str]:
    """Name the modules that hold a parameter which another module's forward reads."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    names: set[str] = set()
    for value in flow.values:
        own = {id(p) for p in model.get_submodule(value.owner).parameters(recurse=False)}
        for source in value.inputs:
            if source.parameter:
                parameter = id(model.get_parameter(source.parameter))
                names.update(holders[parameter] if parameter not in own else ())
    return frozenset(names)


def locate(tracer: str, error: Exception, model: nn.Module) -> Failure:
    """Locate ``error`` in the model and in its source."""
    names = {id(module): name for name, module in model.named_modules()}
    module = location = inside_torch = ""
    torch_folder = Path(torch.__file__).parent
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            module = names[id(owner)]
        file = frame.f_code.co_filename
        own = frame.f_globals.get("__name__", "").startswith("qcompile.")
        if not own and not file.startswith((str(torch_folder), "<")):
            location = f"{file}:{line}"
        elif file.startswith(str(torch_folder / "nn")) and not file.endswith(
            "nn/modules/module.py"
        ):
            inside_torch = f"{file}:{line}"
    return Failure(tracer, error, module, location or inside_torch)
