"""What one node behind an output layer does to the scores, and where it puts the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from qcompile.passes.onnx.constants import NoMatch, attribute, constant, present
from qcompile.passes.onnx.shapes import Shapes

Role = Literal["same", "monotone", "distribution", "other", "choice"]

_FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)


@dataclass(frozen=True)
class Step:
    """One node and what it reads.

    Args:
        node: the node.
        value: the scores that it reads.
        axis: counted from the end, the axis of the classes in ``value``.
        classes: size of that axis.
        shapes: inferred shapes.
        opset: version of the standard operators.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    classes: int
    shapes: Shapes
    opset: int

    @property
    def rank(self) -> int:
        """Number of dimensions of the scores; an obstacle where it is unknown."""
        rank = self.shapes.rank(self.value)
        if rank is None or rank < -self.axis:
            raise NoMatch("the rank of what it reads is not known")
        return rank

    @property
    def place(self) -> int:
        """The axis of the classes, counted from the front."""
        return self.rank + self.axis

    def is_over_classes(self, axis: int) -> bool:
        """Return whether an axis, counted from either end, is that of the classes."""
        if axis < 0:
            return axis == self.axis
        rank = self.shapes.rank(self.value)
        return rank is not None and axis - rank == self.axis


def role(step: Step, index: int) -> tuple[Role, int]:
    """Return the role of a node, and the axis of the classes in its first output.

    Raises:
        NoMatch: the node may do anything; says why.
    """
    node = step.node
    if node.domain not in ("", "ai.onnx") or index != 0:
        raise NoMatch("the layer is not at the end of the graph")
    if node.op_type in _MOVES:
        axis = _MOVES[node.op_type](step)
        dimensions = step.shapes.dimensions(node.outputs[0])
        if dimensions is None or len(dimensions) < -axis or dimensions[axis] != step.classes:
            which = "last axis" if axis == -1 else f"axis {axis}"
            raise NoMatch(f"its {which} is not known to keep the {step.classes} classes")
        return "same", axis
    if node.op_type not in _ROLES:
        raise NoMatch("the layer is not at the end of the graph")
    return _ROLES[node.op_type](step), step.axis


def _same(step: Step) -> Role:
    return "same"


def _monotone(step: Step) -> Role:
    return "monotone"


def _other(step: Step) -> Role:
    return "other"


def _cast(step: Step) -> Role:
    if attribute(step.node, "to", None) not in _FLOATS:
        raise NoMatch("it does not cast to a float type")
    return "same"


def _dropout(step: Step) -> Role:
    node = step.node
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise NoMatch("its mask is used")
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]).any():
        raise NoMatch("it is in training mode")
    return "same"


def _rounding(step: Step) -> Role:
    """QuantizeLinear and DequantizeLinear, which keep the order if all scores share a scale."""
    if len(step.node.inputs) < 2 or constant(step.node.inputs[1]).size != 1:
        raise NoMatch("it has a scale for each class")
    return "monotone"


def _reshape(step: Step) -> int:
    if step.axis == -1:
        return -1
    # The axes up to that of the classes stay if the shape copies them.
    target = constant(step.node.inputs[1] if len(step.node.inputs) > 1 else None).reshape(-1)
    place = step.place
    copies = (
        len(target) > place
        and not target[:place].any()
        and not attribute(step.node, "allowzero", 0)
    )
    if not copies or target[place] not in (0, step.classes):
        raise NoMatch("it is not known to keep the axis of the classes")
    return place - len(target)


def _flatten(step: Step) -> int:
    if step.axis != -1:
        raise NoMatch("it joins the classes with other axes")
    return -1


def _squeeze(step: Step) -> int:
    if step.axis == -1:
        return -1
    axes = [axis % step.rank for axis in _axes(step, 1)]
    if step.place in axes:
        raise NoMatch("it removes the axis of the classes")
    return step.axis + sum(axis > step.place for axis in axes)


def _unsqueeze(step: Step) -> int:
    if step.axis == -1:
        return -1
    axes = _axes(step, 1)
    rank = step.rank + len(axes)
    new = {axis % rank for axis in axes}
    kept = [place for place in range(rank) if place not in new]
    return kept[step.place] - rank


def _transpose(step: Step) -> int:
    rank = step.rank
    order = list(attribute(step.node, "perm", range(rank - 1, -1, -1)))
    if sorted(order) != list(range(rank)):
        raise NoMatch(f"its perm {order} does not fit rank {rank}")
    return order.index(step.place) - rank


def _gather(step: Step) -> int:
    """Gather: some of the rows, all of their scores."""
    axis = attribute(step.node, "axis", 0) % step.rank
    if axis == step.place:
        raise NoMatch("it is not known to leave the axis of the classes alone")
    if axis < step.place or step.axis == -1:
        return step.axis
    indices = step.node.inputs[1] if len(step.node.inputs) > 1 else None
    rank = step.shapes.rank(present(indices))
    if rank is None:
        raise NoMatch("the rank of its indices is not known")
    return step.axis + 1 - rank


def _slice(step: Step) -> int:
    if step.place in [axis % step.rank for axis in _axes(step, 3)]:
        raise NoMatch("it is not known to leave the axis of the classes alone")
    return step.axis


def _axes(step: Step, place: int) -> Sequence[int]:
    """Return the axes that a node names, in an input or, in old files, an attribute."""
    node = step.node
    if len(node.inputs) > place and node.inputs[place] is not None:
        return [int(axis) for axis in constant(node.inputs[place]).reshape(-1)]
    axes = attribute(node, "axes", None)
    if axes is None:
        raise NoMatch("it does not name its axes")
    return axes


def _distribution(step: Step) -> Role:
    axis = attribute(step.node, "axis", -1 if step.opset >= 13 else 1)
    dimensions = step.shapes.dimensions(step.value)
    if step.opset < 13 and dimensions is not None and -len(dimensions) <= axis < len(dimensions):
        # Before opset 13 a softmax runs over all axes from `axis` on, taken as one.
        first, place = axis % len(dimensions), len(dimensions) + step.axis
        joined = [size for at, size in enumerate(dimensions) if at >= first and at != place]
        if place >= first and all(size == 1 for size in joined):
            return "distribution"
        raise NoMatch(f"before opset 13, axis={axis} joins the classes with other axes")
    if not step.is_over_classes(axis):
        raise NoMatch(f"it is over axis {axis}, not known to be that of the classes")
    return "distribution"


def _top_k(step: Step) -> Role:
    if not step.is_over_classes(attribute(step.node, "axis", -1)):
        raise NoMatch("it is not known to be over the axis of the classes")
    if not attribute(step.node, "largest", 1):
        raise NoMatch("it takes the smallest")
    if not 1 <= chosen(step.node) <= step.classes:
        raise NoMatch(f"k = {chosen(step.node)} is not between 1 and {step.classes}")
    return "choice"


def _arg_max(step: Step) -> Role:
    if not step.is_over_classes(attribute(step.node, "axis", 0)):
        raise NoMatch("it is not known to be over the axis of the classes")
    if attribute(step.node, "select_last_index", 0):
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


_MOVES: dict[str, Callable[[Step], int]] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Gather": _gather,
    "Slice": _slice,
}
"""Nodes that move the scores; they answer with the axis of the classes behind them."""

_ROLES: dict[str, Callable[[Step], Role]] = {
    "Identity": _same,
    "Cast": _cast,
    "Dropout": _dropout,
    "Sigmoid": _monotone,
    "Tanh": _monotone,
    "Exp": _monotone,
    "Log": _monotone,
    "QuantizeLinear": _rounding,
    "DequantizeLinear": _rounding,
    "Relu": _other,
    "Clip": _other,
    "Neg": _other,
    "Softmax": _distribution,
    "LogSoftmax": _distribution,
    "TopK": _top_k,
    "ArgMax": _arg_max,
}

MOVES = frozenset(_MOVES)
"""Operators that move the scores and leave each as it is."""
