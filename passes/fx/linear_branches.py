"""What linear layers compute in a graph, whichever way they are written.

A branch is the value of an ``nn.Linear``, of ``F.linear`` or of a matrix product with parameters,
or some of its columns where one layer computes several branches that are split afterwards. A factor
is a branch with the activation behind it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qcompile.fused import call_hooks_of
from qcompile.passes.fx.layers import obstacle_of_type
from qcompile.passes.fx.own_forward import ACTIVATIONS_BY_HAND

__all__ = ["GATES", "Branch", "Branches", "Factor", "argument", "operation"]

_ATEN = torch.ops.aten

_FUNCTIONS: dict[Any, str] = {
    operator.getitem: "getitem",
    **dict.fromkeys((operator.mul, torch.mul, torch.multiply, _ATEN.mul.Tensor), "mul"),
    **dict.fromkeys((operator.add, torch.add, _ATEN.add.Tensor), "add"),
    **dict.fromkeys((operator.pow, torch.pow, _ATEN.pow.Tensor_Scalar), "pow"),
    **dict.fromkeys((torch.square, _ATEN.square.default), "square"),
    **dict.fromkeys((F.linear, _ATEN.linear.default), "linear"),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.mm), "matmul"),
    **dict.fromkeys((_ATEN.matmul.default, _ATEN.mm.default), "matmul"),
    **dict.fromkeys((torch.addmm, _ATEN.addmm.default), "addmm"),
    **dict.fromkeys((torch.chunk, _ATEN.chunk.default), "chunk"),
    **dict.fromkeys((torch.split, _ATEN.split.Tensor, _ATEN.split_with_sizes.default), "split"),
    **dict.fromkeys((F.dropout, _ATEN.dropout.default), "dropout"),
    **dict.fromkeys((F.gelu, _ATEN.gelu.default), "gelu"),
    **dict.fromkeys((F.glu, _ATEN.glu.default), "glu"),
    **dict.fromkeys((F.relu, torch.relu, _ATEN.relu.default), "relu"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, _ATEN.sigmoid.default), "sigmoid"),
    **dict.fromkeys((F.silu, _ATEN.silu.default), "silu"),
    **dict.fromkeys((F.tanh, torch.tanh, _ATEN.tanh.default), "tanh"),
}
_METHODS = frozenset(
    {"add", "chunk", "dropout", "float", "half", "matmul", "mm", "mul", "multiply", "pow", "relu"}
    | {"sigmoid", "split", "square", "tanh", "to", "type"}
)
_MODULES: dict[type[nn.Module], str] = {
    nn.Dropout: "dropout",
    nn.GELU: "gelu",
    nn.GLU: "glu",
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
GATES = frozenset({"gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh"})
"""Activations that the fused operator knows."""

_CASTS = frozenset({"float", "half", "to", "type"})
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm)


def operation(module: nn.Module, node: fx.Node) -> str:
    """Name what a node computes, if it is one of the operations that matter here.

    Args:
        module: what the graph was traced from.
        node: of the graph.
    """
    if node.op == "call_module":
        child: Any = module.get_submodule(str(node.target))
        kind = type(child)
        name = _MODULES.get(kind) or ACTIVATIONS_BY_HAND.get(
            f"{kind.__module__}.{kind.__qualname__}", ""
        )
        return f"{name}_tanh" if name == "gelu" and child.approximate == "tanh" else name
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
        return {"multiply": "mul", "mm": "matmul"}.get(name, name) if name in _METHODS else ""
    name = _FUNCTIONS.get(node.target, "") if node.op == "call_function" else ""
    tanh = name == "gelu" and argument(node, 1, "approximate", "none") == "tanh"
    return "gelu_tanh" if tanh else name


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call, given by position or by name."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


@dataclass(frozen=True)
class Branch:
    """What one linear layer computes from ``source``, or some columns of it.

    Args:
        value: the node.
        source: what is multiplied with the weight.
        weight: qualified name of the parameter [outputs, inputs], within the module.
        turned: whether it is [inputs, outputs].
        bias: likewise, [outputs], or empty.
        rows: of weight and bias, from and to.
        height: rows that the weight has.
        kind: type and device of the weight.
        nodes: everything that computes the value from the source.
        label: name of the layer, for people.
    """

    value: fx.Node
    source: fx.Node
    weight: str
    bias: str
    rows: tuple[int, int]
    height: int
    kind: tuple[torch.dtype, torch.device]
    nodes: tuple[fx.Node, ...]
    label: str
    turned: bool = False

    @property
    def outputs(self) -> int:
        """Number of columns."""
        return self.rows[1] - self.rows[0]

    @property
    def computes(self) -> tuple[Any, ...]:
        """What two branches have in common that compute the same."""
        return self.source, self.weight, self.turned, self.bias, self.rows

    def part(self, value: fx.Node, rows: tuple[int, int], *nodes: fx.Node) -> Branch:
        """Return some columns; ``nodes`` pick them out."""
        return replace(self, value=value, rows=rows, nodes=(*self.nodes, *nodes))


@dataclass(frozen=True)
class Factor:
    """A branch with the activation behind it, or why there is none to compute with.

    Args:
        label: name of the layer, for people.
        branch: the branch; ``None`` where there is a reason.
        gate: name of the activation, or ``none``.
        nodes: everything that computes the factor from the branch's source.
        reason: why the layer cannot be part of a fused call.
    """

    label: str
    branch: Branch | None = None
    gate: str = "none"
    nodes: tuple[fx.Node, ...] = ()
    reason: str = ""


class Branches:
    """Reads the branches of one graph.

    Args:
        module: what the graph was traced from, hooks and all.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def at(self, node: Any) -> Branch | Factor | None:
        """Return the branch whose value a node is.

        A linear layer that cannot be read is a factor with a reason; anything else is ``None``.
        """
        if not isinstance(node, fx.Node):
            return None
        if node.op == "call_module":
            return self._of_module(node)
        kind = operation(self.module, node)
        if kind == "linear":
            return self._of_function(node)
        if kind in ("matmul", "addmm", "add"):
            return self._of_matmul(node, kind)
        return self._column_block(node) if kind == "getitem" else None

    def factor(self, node: Any) -> Factor | None:
        """Return the factor whose value a node is; ``None`` if no linear layer is behind it."""
        gates: list[str] = []
        nodes: list[fx.Node] = []
        reason = ""
        while (found := self.at(node)) is None:
            step = self._step(node)
            if step is None:
                return None
            gate, obstacle = step
            gates += [gate] if gate else []
            reason = reason or obstacle
            nodes.append(node)
            node = argument(node, 0, "input")
        if isinstance(found, Factor):
            return found
        if len(gates) > 1:
            reason = reason or "several activations follow each other"
        if reason:
            return Factor(found.label, reason=f"{reason} behind {found.label}")
        gate = gates[0] if gates else "none"
        return Factor(found.label, found, gate, (*found.nodes, *nodes))

    def _step(self, node: Any) -> tuple[str, str] | None:
        """Return the activation that a node is, or what else it is between layer and product."""
        if not isinstance(node, fx.Node):
            return None
        kind = operation(self.module, node)
        child = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        hooks = "" if child is None else call_hooks_of(child)
        if kind in GATES or kind == "identity":
            what = f"{type(child).__name__} has {hooks}" if hooks else ""
            return "" if kind == "identity" else kind, what
        if kind in _CASTS:
            return "", "a change of type stands"
        unknown = isinstance(child, _NORMS) or _is_activation(child)
        name = kind if kind == "dropout" else type(child).__name__ if unknown else ""
        return ("", f"{name} stands") if name else None

    def _of_module(self, node: fx.Node) -> Branch | Factor | None:
        label = str(node.target)
        child: Any = self.module.get_submodule(label)
        if not isinstance(child, nn.Linear) and not _is_like_linear(child):
            return None
        reason = _obstacle(child)
        if reason:
            return Factor(label, reason=f"{label}: {reason}")
        bias = f"{label}.bias" if child.bias is not None else ""
        return self._branch(node, child.weight, f"{label}.weight", bias, label)

    def _of_function(self, node: fx.Node) -> Branch | Factor | None:
        weight = self._parameter(argument(node, 1, "weight"))
        given = argument(node, 2, "bias")
        bias = "" if given is None else self._parameter(given)
        if weight is None or bias is None:
            return Factor("linear", reason="linear takes a weight or bias that is no parameter")
        tensor = self.module.get_parameter(weight)
        if is_traceable_wrapper_subclass(tensor):
            return Factor(weight, reason=f"{weight} is of a tensor class of its own")
        return self._branch(node, tensor, weight, bias, weight)

    def _of_matmul(self, node: fx.Node, kind: str) -> Branch | Factor | None:
        """Read x @ W, with W [inputs, outputs], and b + x @ W."""
        if kind == "add":
            return self._with_bias(node)
        scaled = any(argument(node, 5, name, 1) != 1 for name in ("alpha", "beta"))
        first = 1 if kind == "addmm" else 0
        weight = self._parameter(argument(node, first + 1, "mat2" if first else "other"))
        if weight is None or node.kwargs.get("out") is not None or scaled:
            return None
        tensor = self.module.get_parameter(weight)
        if tensor.dim() != 2 or is_traceable_wrapper_subclass(tensor):
            return None
        source = argument(node, first, "mat1" if first else "input")
        branch = self._branch(node, tensor.t(), weight, "", weight, source)
        if branch is None or not first:
            return branch and replace(branch, turned=True)
        return self._biased(replace(branch, turned=True), argument(node, 0, "input"), node)

    def _with_bias(self, node: fx.Node) -> Branch | None:
        operands = argument(node, 0, "input"), argument(node, 1, "other")
        if argument(node, 2, "alpha", 1) != 1 or node.kwargs.get("out") is not None:
            return None
        for product, bias in (operands, operands[::-1]):
            if isinstance(product, fx.Node) and operation(self.module, product) == "matmul":
                found = self._of_matmul(product, "matmul")
                if isinstance(found, Branch):
                    return self._biased(found, bias, node)
        return None

    def _biased(self, branch: Branch, bias: Any, node: fx.Node) -> Branch | None:
        name = self._parameter(bias)
        tensor = None if name is None else self.module.get_parameter(name)
        if tensor is None or tensor.shape != (branch.height,):
            return None
        if (tensor.dtype, tensor.device) != branch.kind:  # torch would promote
            return None
        nodes = branch.nodes if node in branch.nodes else (*branch.nodes, node)
        return replace(branch, value=node, bias=name or "", nodes=nodes)

    def _branch(
        self,
        node: fx.Node,
        tensor: torch.Tensor,
        weight: str,
        bias: str,
        label: str,
        source: Any = None,
    ) -> Branch | None:
        nodes = [node]
        source = argument(node, 0, "input") if source is None else source
        while isinstance(source, fx.Node) and self._step(source) == ("", ""):
            nodes.append(source)  # nn.Identity
            source = argument(source, 0, "input")
        if not isinstance(source, fx.Node):
            return None
        rows = (0, len(tensor))
        kind = tensor.dtype, tensor.device
        return Branch(node, source, weight, bias, rows, rows[1], kind, tuple(nodes), label)

    def _parameter(self, node: Any) -> str | None:
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        owner, _, name = str(node.target).rpartition(".")
        known = self.module.get_submodule(owner)._parameters.get(name)
        return None if known is None else str(node.target)

    def _column_block(self, node: fx.Node) -> Branch | Factor | None:
        """Read one piece of a layer whose output is split along the last dimension."""
        pieces, index = node.args
        if not isinstance(pieces, fx.Node):
            return None
        kind = operation(self.module, pieces)
        if isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis:
            whole = self.at(pieces)
            if not isinstance(whole, Branch) or not isinstance(index[1], slice):
                return whole if isinstance(whole, Factor) else None
            return _sliced(whole, node, index[1])
        if kind not in ("chunk", "split") or not isinstance(index, int):
            return None
        whole = self.at(argument(pieces, 0, "input") or argument(pieces, 0, "tensor"))
        if not isinstance(whole, Branch):
            return whole
        dim = argument(pieces, 2, "dim", 0)
        if dim != -1:
            reason = f"{whole.label} is split along dimension {dim}, not along the last, -1"
            return Factor(whole.label, reason=reason)
        names = ("split_size", "split_sizes", "split_size_or_sections")
        sizes = next((pieces.kwargs[name] for name in names if name in pieces.kwargs), None)
        sizes = argument(pieces, 1, "chunks", sizes)
        blocks = _blocks(whole.outputs, sizes, kind)
        if not blocks or not -len(blocks) <= index < len(blocks):
            return None
        first, last = blocks[index]
        rows = whole.rows[0] + first, whole.rows[0] + last
        return whole.part(node, rows, pieces, node)


def _sliced(whole: Branch, node: fx.Node, block: slice) -> Branch | None:
    bounds = (block.start, block.stop, block.step)
    if not all(isinstance(bound, int | None) for bound in bounds):
        return None
    first, last, step = block.indices(whole.outputs)
    rows = whole.rows[0] + first, whole.rows[0] + last
    return whole.part(node, rows, node) if step == 1 and last > first else None


def _blocks(outputs: int, sizes: Any, kind: str) -> list[tuple[int, int]]:
    """Return from where to where the pieces go; nothing if that is not known."""
    if isinstance(sizes, int) and sizes > 0:
        size = -(-outputs // sizes) if kind == "chunk" else sizes
        return [(start, min(start + size, outputs)) for start in range(0, outputs, size)]
    if not isinstance(sizes, list | tuple) or not all(isinstance(size, int) for size in sizes):
        return []
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return list(zip([0, *ends], ends, strict=False)) if ends and ends[-1] == outputs else []


def _is_like_linear(child: Any) -> bool:
    """Return whether a module of another class stands where a linear layer would."""
    return isinstance(getattr(child, "in_features", None), int) and isinstance(
        getattr(child, "out_features", None), int
    )


def _is_activation(child: nn.Module | None) -> bool:
    return child is not None and type(child).__module__ == "torch.nn.modules.activation"


def _obstacle(child: Any) -> str:
    """Say why the weights of a layer cannot be used without calling it, if they cannot."""
    if not isinstance(child, nn.Linear):
        return f"{type(child).__name__} is no torch.nn.Linear"
    weight = child._parameters.get("weight")
    if weight is not None and is_lazy(weight):
        return "its size is not known yet: run the model once first"
    hooks = call_hooks_of(child)
    if hooks:
        return f"it has {hooks}, which would not be called"
    if "forward" in vars(child):
        return "its forward was replaced on the instance"
    reason = obstacle_of_type(child)
    if reason or weight is None:
        return reason or "its weight is not a parameter"
    if is_traceable_wrapper_subclass(weight):
        return "its weight is of a tensor class of its own"
    return "" if weight.is_floating_point() else f"its weight is of type {weight.dtype}"
