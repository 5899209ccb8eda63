"""What happens to the scores of an output layer on their way to the graph's outputs.

The way is a chain of nodes of five roles: ``same`` hands the scores on, at most in another shape
or for some of the rows; ``monotone`` keeps their order; ``distribution`` is a softmax or its
logarithm over all of them; ``other`` changes each score in another way; ``choice`` (TopK, ArgMax)
ends the chain. Anything else is an obstacle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from qcompile.passes.onnx.constants import NoMatch, attribute, constant, describe
from qcompile.passes.onnx.shapes import Shapes

Role = Literal["same", "monotone", "distribution", "other", "choice"]

_MOST_STEPS = 64
_FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)


@dataclass
class Tail:
    """One chain from the scores of a layer to a graph output or to a choice.

    Args:
        nodes: the chain, the choice included.
        roles: the role of each node.
        end: the graph output, or ``None`` where a choice ends the chain.
        exclusive: whether nothing else reads a value on the way.
    """

    nodes: list[ir.Node]
    roles: list[Role]
    end: ir.Value | None
    exclusive: bool

    @property
    def choice(self) -> ir.Node | None:
        """The TopK or ArgMax at the end, if there is one."""
        return self.nodes[-1] if self.end is None else None

    @property
    def distribution(self) -> ir.Node | None:
        """The first Softmax or LogSoftmax on the way, if there is one."""
        pairs = zip(self.nodes, self.roles, strict=True)
        return next((node for node, role in pairs if role == "distribution"), None)


def tails(scores: ir.Value, classes: int, shapes: Shapes, opset: int) -> list[Tail]:
    """Return every chain from ``scores`` to a graph output or a choice.

    Args:
        scores: value of shape [..., classes].
        classes: size of its last axis.
        shapes: inferred shapes.
        opset: version of the standard operators.

    Raises:
        NoMatch: there is none; names the first obstacle.
    """
    found: list[Tail] = []
    obstacles: list[str] = []
    _walk(scores, [], [], True, _Context(scores, classes, shapes, opset), found, obstacles)
    if not found:
        raise NoMatch(obstacles[0] if obstacles else "nothing reads its scores")
    return found


@dataclass(frozen=True)
class _Context:
    scores: ir.Value
    classes: int
    shapes: Shapes
    opset: int


def _walk(value, nodes, roles, exclusive, context, found, obstacles) -> None:
    uses = list(value.uses())
    if value.is_graph_output():
        found.append(Tail(list(nodes), list(roles), value, exclusive and not uses))
        exclusive = False
    exclusive = exclusive and len(uses) == 1
    if len(nodes) >= _MOST_STEPS:
        obstacles.append(f"more than {_MOST_STEPS} nodes follow it")
        return
    for node, index in uses:
        try:
            role = _role(node, index, value, context)
        except NoMatch as reason:
            obstacles.append(f"its scores feed {describe(node)}: {reason}")
            continue
        step, roles_so_far = [*nodes, node], [*roles, role]
        if role == "choice":
            found.append(Tail(step, roles_so_far, None, exclusive))
        else:
            _walk(node.outputs[0], step, roles_so_far, exclusive, context, found, obstacles)


def _role(node: ir.Node, index: int, value: ir.Value, context: _Context) -> Role:
    if node.graph is not context.scores.graph:
        raise NoMatch("it is inside a sub-graph")
    if node.domain not in ("", "ai.onnx") or node.op_type not in _ROLES or index != 0:
        raise NoMatch("the layer is not at the end of the graph")
    return _ROLES[node.op_type](node, value, context)


def _same(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    return "same"


def _monotone(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    return "monotone"


def _other(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    return "other"


def _cast(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    if attribute(node, "to", None) not in _FLOATS:
        raise NoMatch("it does not cast to a float type")
    return "same"


def _dropout(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise NoMatch("its mask is used")
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]).any():
        raise NoMatch("it is in training mode")
    return "same"


def _reshaping(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    # Rows stay rows exactly if the last axis keeps its size; the others may be split or joined.
    if context.shapes.last(node.outputs[0]) != context.classes:
        raise NoMatch(f"its last axis is not known to keep the {context.classes} classes")
    return "same"


def _rows(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    """Slice or Gather: some of the rows, all of their scores."""
    rank = context.shapes.rank(value)
    axes = _axes(node)
    if rank is None or axes is None or any(axis % rank == rank - 1 for axis in axes):
        raise NoMatch("it is not known to leave the axis of the classes alone")
    return _reshaping(node, value, context)


def _axes(node: ir.Node) -> list[int] | None:
    if node.op_type == "Gather":
        return [attribute(node, "axis", 0)]
    if len(node.inputs) > 3:
        return [int(axis) for axis in constant(node.inputs[3])]
    return attribute(node, "axes", None)


def _transpose(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    permutation = attribute(node, "perm", None)
    if permutation is None or permutation[-1] != len(permutation) - 1:
        raise NoMatch("it moves the axis of the classes")
    return "same"


def _distribution(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    axis = attribute(node, "axis", -1 if context.opset >= 13 else 1)
    if context.shapes.is_last_axis(value, axis):
        return "distribution"
    dimensions = context.shapes.dimensions(value)
    # Before opset 13 a softmax runs over all axes from `axis` on, taken as one.
    if context.opset < 13 and dimensions is not None and 0 <= axis < len(dimensions):
        if all(size == 1 for size in dimensions[axis:-1]):
            return "distribution"
        raise NoMatch(f"before opset 13, axis={axis} joins the classes with other axes")
    raise NoMatch(f"it is over axis {axis}, not known to be the last")


def _top_k(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    if not context.shapes.is_last_axis(value, attribute(node, "axis", -1)):
        raise NoMatch("it is not known to be over the last axis")
    if not attribute(node, "largest", 1):
        raise NoMatch("it takes the smallest")
    if not 1 <= chosen(node) <= context.classes:
        raise NoMatch(f"k = {chosen(node)} is not between 1 and {context.classes}")
    return "choice"


def _arg_max(node: ir.Node, value: ir.Value, context: _Context) -> Role:
    if not context.shapes.is_last_axis(value, attribute(node, "axis", 0)):
        raise NoMatch("it is not known to be over the last axis")
    if attribute(node, "select_last_index", 0):
        raise NoMatch("it takes the last of equal scores")
    return "choice"


def chosen(node: ir.Node) -> int:
    """Return how many scores a TopK or ArgMax keeps.

    Raises:
        NoMatch: the number is not constant.
    """
    if node.op_type == "ArgMax":
        return 1
    if "k" in node.attributes:
        return int(node.attributes["k"].value)
    array = constant(node.inputs[1] if len(node.inputs) > 1 else None)
    if array.size != 1:
        raise NoMatch("its k is not one number")
    return int(array.reshape(()))


_ROLES = {
    "Identity": _same,
    "Cast": _cast,
    "Dropout": _dropout,
    "Reshape": _reshaping,
    "Flatten": _reshaping,
    "Squeeze": _reshaping,
    "Unsqueeze": _reshaping,
    "Transpose": _transpose,
    "Gather": _rows,
    "Slice": _rows,
    "Sigmoid": _monotone,
    "Tanh": _monotone,
    "Exp": _monotone,
    "Log": _monotone,
    "Relu": _other,
    "Clip": _other,
    "Neg": _other,
    "Softmax": _distribution,
    "LogSoftmax": _distribution,
    "TopK": _top_k,
    "ArgMax": _arg_max,
}
