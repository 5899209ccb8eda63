"""A traced graph as plain values: who computes what from what, whichever tracer drew it.

``torch.fx.symbolic_trace`` and ``torch.export`` write different graphs. Passes ask three things
that both can answer: which modules run, whose parameters are read by somebody else, and which
layers an output comes from. Regions such as ``torch.no_grad()``, which torch.export puts into
graphs of their own, are read as if they stood in line.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Dataflow", "Value", "read_graph"]

_MIXING = frozenset(
    {
        "addbmm",
        "addmm",
        "baddbmm",
        "batch_norm",
        "bilinear",
        "bmm",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "convolution",
        "dot",
        "einsum",
        "embedding",
        "gru",
        "linear",
        "lstm",
        "matmul",
        "mm",
        "multi_head_attention_forward",
        "mv",
        "rnn_relu",
        "rnn_tanh",
        "scaled_dot_product_attention",
        "tensordot",
    }
)
"""Operations behind which a layer no longer counts as the one that computes the output."""


_METADATA = frozenset({"device", "dtype", "shape"})
"""Attributes of a tensor that are no part of the data flow: a quadratic layer answers them too."""


@dataclass(eq=False)
class Value:
    """The result of one operation.

    Args:
        owner: qualified name of the innermost module whose forward computes it.
        operation: name of the operator, or of the module that was called as a whole.
        inputs: the values it is computed from.
        parameter: qualified name of the parameter that it is, or empty.
        shape: sizes where the tracer knows them; unknown sizes are not integers.
        opaque: whether the operation is the call of a module that holds parameters.
    """

    owner: str
    operation: str
    inputs: tuple[Value, ...] = ()
    parameter: str = ""
    shape: tuple[Any, ...] | None = None
    opaque: bool = False

    @property
    def mixes(self) -> bool:
        """Whether the operation combines its input with weights or mixes the last axis."""
        return (
            self.opaque
            or self.operation.rstrip("_") in _MIXING
            or any(value.parameter for value in self.inputs)
        )


@dataclass(frozen=True)
class Dataflow:
    """Everything that one call of a model computes."""

    values: tuple[Value, ...]
    outputs: tuple[Value, ...]


def read_graph(graph: fx.Graph, root: nn.Module, parameters: dict[str, str]) -> Dataflow:
    """Read the graph that a tracer drew of ``root``.

    Args:
        graph: from ``fx.Tracer.trace`` or ``torch.export``.
        root: what the graph's ``call_module`` and ``get_attr`` nodes refer to.
        parameters: name of a placeholder → qualified name of the parameter that it stands for.
    """
    reader = _Reader(parameters)
    outputs = reader.read(graph, root)
    return Dataflow(tuple(reader.values), tuple(outputs))


class _Reader:
    """Collects values; one instance reads a graph and the graphs nested in it."""

    def __init__(self, parameters: dict[str, str]) -> None:
        self.parameters = parameters
        self.values: list[Value] = []

    def read(
        self, graph: fx.Graph, root: nn.Module, arguments: list[Value] | None = None
    ) -> list[Value]:
        """Read one graph and return its outputs; ``arguments`` are a nested graph's inputs."""
        known: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "output":
                return list(_flatten(node.args, known))
            if node.op == "placeholder" and arguments is not None:
                known[node] = arguments.pop(0)
            elif node.op == "placeholder":
                known[node] = Value("", "input", parameter=self.parameters.get(node.name, ""))
            elif node.op == "get_attr":
                known[node] = _attribute(root, str(node.target))
            else:
                known[node] = self._call(node, root, known)
        return []

    def _call(self, node: fx.Node, root: nn.Module, known: dict[fx.Node, Any]) -> Any:
        inputs = list(_flatten((node.args, node.kwargs), known))
        nested = [known[n] for n in node.all_input_nodes if isinstance(known[n], fx.GraphModule)]
        if nested:
            return self._inline(nested, inputs)
        source = node.args[0] if node.args else None
        if node.target is operator.getitem and isinstance(source, fx.Node):
            items, index = known[source], node.args[1]
            if isinstance(items, list) and isinstance(index, int) and index < len(items):
                return items[index]
        if node.target is getattr and node.args[1] in _METADATA:
            inputs = []
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        value = Value(
            owner=str(node.target) if module is not None else _owner(node),
            operation=_operation(node.target) if module is None else type(module).__name__,
            inputs=tuple(inputs),
            shape=_shape(node.meta.get("val")),
            opaque=module is not None and next(module.parameters(), None) is not None,
        )
        self.values.append(value)
        return value

    def _inline(self, graphs: list[fx.GraphModule], inputs: list[Value]) -> list[Value]:
        """Read nested graphs, whose inputs are the last ones of the call."""
        outputs: list[Value] = []
        for inner in graphs:
            count = sum(node.op == "placeholder" for node in inner.graph.nodes)
            missing = [Value("", "input")] * max(0, count - len(inputs))
            outputs += self.read(inner.graph, inner, missing + inputs[len(inputs) - count :])
        return outputs


def _flatten(argument: Any, known: dict[fx.Node, Any]) -> Iterator[Value]:
    """Yield the values in nested arguments, in order."""
    if isinstance(argument, fx.Node):
        argument = known[argument]
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from _flatten(item, known)
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from _flatten(item, known)
    elif isinstance(argument, slice):
        yield from _flatten((argument.start, argument.stop, argument.step), known)


def _attribute(root: nn.Module, target: str) -> Any:
    """Return the nested graph that ``target`` names, or a value for a tensor."""
    owner, _, name = target.rpartition(".")
    found = getattr(root.get_submodule(owner), name, None)
    if isinstance(found, fx.GraphModule):
        return found
    is_parameter = isinstance(found, nn.Parameter)
    return Value(owner, "attribute", parameter=target if is_parameter else "")


def _owner(node: fx.Node) -> str:
    """Return the innermost module of the node's stack, without the tracer's repeat counters."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).partition("@")[0] if stack else ""


def _operation(target: Any) -> str:
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


def _shape(value: Any) -> tuple[Any, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
