"""What happens to the scores of an output layer on their way to the graph's outputs.

The way is a chain of nodes of five roles: ``same`` hands the scores on, at most in another shape
or for some of the rows; ``monotone`` keeps their order; ``distribution`` is a softmax or its
logarithm over all of them; ``other`` changes each score in another way; ``choice`` (TopK, ArgMax)
ends the chain. Anything else is an obstacle. What a single node does is in
:mod:`qcompile.passes.onnx.roles`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from qcompile.passes.onnx.constants import NoMatch, describe
from qcompile.passes.onnx.roles import Role, Step, role
from qcompile.passes.onnx.shapes import Shapes

_MOST_STEPS = 64


@dataclass
class Tail:
    """One chain from the scores of a layer to a graph output or to a choice.

    Args:
        nodes: the chain, the choice included.
        roles: the role of each node.
        axes: counted from the end, the axis of the classes behind each node.
        axis: the same, at the end of the chain.
        end: the graph output, or ``None`` where a choice ends the chain.
        exclusive: whether nothing else reads a value on the way.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    axes: list[int] = field(default_factory=list)
    axis: int = -1
    end: ir.Value | None = None
    exclusive: bool = True

    @property
    def choice(self) -> ir.Node | None:
        """The TopK or ArgMax at the end, if there is one."""
        return self.nodes[-1] if self.end is None else None

    @property
    def distribution(self) -> ir.Node | None:
        """The first Softmax or LogSoftmax on the way, if there is one."""
        pairs = zip(self.nodes, self.roles, strict=True)
        return next((node for node, role in pairs if role == "distribution"), None)

    def to(self, end: ir.Value, exclusive: bool) -> Tail:
        """Return this way as one that ends in the graph output ``end``."""
        return Tail(self.nodes, self.roles, self.axes, self.axis, end, exclusive)

    def past(self, node: ir.Node, role: Role, axis: int, exclusive: bool) -> Tail:
        """Return this way made longer by ``node``."""
        nodes, roles, axes = [*self.nodes, node], [*self.roles, role], [*self.axes, axis]
        return Tail(nodes, roles, axes, axis, None, exclusive)


def tails(scores: ir.Value, classes: int, axis: int, shapes: Shapes, opset: int) -> list[Tail]:
    """Return every chain from ``scores`` to a graph output or a choice.

    Args:
        scores: value with the classes on ``axis``.
        classes: size of that axis.
        axis: which one, counted from the end.
        shapes: inferred shapes.
        opset: version of the standard operators.

    Raises:
        NoMatch: there is none; names the first obstacle.
    """
    found: list[Tail] = []
    obstacles: list[str] = []
    pending = [(scores, Tail(axis=axis))]
    while pending:
        value, so_far = pending.pop()
        uses = list(value.uses())
        exclusive = so_far.exclusive and len(uses) == 1
        if value.is_graph_output():
            found.append(so_far.to(value, so_far.exclusive and not uses))
            exclusive = False
        if len(so_far.nodes) >= _MOST_STEPS:
            obstacles.append(f"more than {_MOST_STEPS} nodes follow it")
            continue
        longer = []
        for node, index in uses:
            step = Step(node, value, so_far.axis, classes, shapes, opset)
            try:
                if node.graph is not scores.graph:
                    raise NoMatch("it is inside a sub-graph")
                kind, axis_after = role(step, index)
            except NoMatch as reason:
                obstacles.append(f"its scores feed {describe(node)}: {reason}")
                continue
            way = so_far.past(node, kind, axis_after, exclusive)
            if kind == "choice":
                found.append(way)
            else:
                longer.append((node.outputs[0], way))
        pending += reversed(longer)
    if not found:
        raise NoMatch(obstacles[0] if obstacles else "nothing reads its scores")
    return found
