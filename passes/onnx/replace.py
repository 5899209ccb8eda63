"""Puts an operator of domain ``qcompile`` in the place of one output layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile import ops
from qcompile.passes.onnx.constants import (
    NoMatch,
    attribute,
    constant,
    describe,
    present,
    source_initializer,
)
from qcompile.passes.onnx.edit import cancel_transposes, is_read, prune, substitute
from qcompile.passes.onnx.emit import emit
from qcompile.passes.onnx.layer import LinearLayer
from qcompile.passes.onnx.roles import chosen
from qcompile.passes.onnx.shapes import Shapes
from qcompile.passes.onnx.tail import Tail
from qcompile.passes.onnx.tied import share_rows
from qcompile.passes.onnx.top_k import append_top_k, fuse_top_k, hand_out, values_are_read

_ONE_K_UP_TO = 11
"""Up to this opset a function body cannot read the attribute k, so a file has one k."""


@dataclass
class Head:
    """An output layer that was replaced.

    Args:
        name: the layer's name.
        kind: operator types before.
        became: operator types after.
        reads: names of the values that the layer reads, before and after.
        scores: name of the value that held the scores before.
        outputs: number of classes, N.
        depth: number of hidden activations, d.
        results_before: names of the values in which the layer's part of the graph ended.
        results_after: the same, after.
        axis: counted from the end, the axis of the classes in the scores.
        axis_after: the same in the results.
        step: the largest step by which the scores are rounded on their way, 0 without.
        inexact: relative error of the layer before, where it computes in integers by itself.
        node: name of the operator's node after.
        mode: how ``LinearTopK`` searches; ``exact`` as it is put in.
        distribution: what ``LinearTopK`` hands out in place of scores: ``Softmax`` for
            probabilities, ``LogSoftmax`` for their logarithms, else empty.
        rescore: what it keeps of its rows, one of :data:`qcompile.ops.RESCORE`.
    """

    name: str
    kind: str
    became: str
    reads: list[str]
    scores: str
    outputs: int
    depth: int
    results_before: list[str]
    results_after: list[str]
    axis: int = -1
    axis_after: int = -1
    step: float = 0.0
    inexact: float = 0.0
    node: str = ""
    mode: str = "exact"
    distribution: str = ""
    rescore: str = "fp32"


def replace(
    model: ir.Model,
    layer: LinearLayer,
    tails: list[Tail],
    shapes: Shapes,
    top_k: int | None,
    alone: bool = True,
) -> Head:
    """Rewrite one layer of ``model``.

    Args:
        model: the model.
        layer: the layer.
        tails: its ways to the outputs.
        shapes: inferred shapes.
        top_k: hand out the best in place of all scores.
        alone: whether no other layer is asked for the best; then the new outputs are called
            ``scores`` and ``ids``, else the name of the output precedes that.

    Raises:
        NoMatch: the layer is better left alone, or ``top_k`` is asked and no single graph output
            holds the scores; nothing changed.
    """
    tail = tails[0] if len(tails) == 1 and tails[0].exclusive else None
    place = None if top_k is None else _output_for_top_k(tails, model.graph)
    doomed = [*layer.nodes, *(tail.nodes if tail else [])]
    before = _results(tails)
    head = Head(
        name=layer.name,
        kind="+".join(node.op_type for node in doomed),
        became="",
        reads=_reads(layer),
        scores=str(layer.scores.name),
        outputs=layer.weight.shape[0],
        depth=layer.weight.shape[1],
        results_before=before,
        results_after=before,
        axis=layer.axis,
        axis_after=tails[0].axis,
        step=layer.step + max(_rounding(way) for way in tails),
        inexact=layer.inexact,
    )
    known = {id(node) for node in model.graph}
    weight = source_initializer(layer.weight_value)
    k = top_k or (chosen(tail.choice) if tail and tail.choice else None)
    best = None
    if tail and k is not None and _can_fuse_top_k(model, tail, k, shapes):
        if values_are_read(tail) and tail.distribution is not None:
            head.distribution = tail.distribution.op_type
        best = fuse_top_k(model, layer, tail, k, shapes)
        head.became = "+".join(filter(None, (ops.LINEAR_TOP_K.name, head.distribution)))
    elif tail and (softmax := _softmax_of_the_scores(tail)):
        _fuse_softmax(model, layer, tail, softmax)
        head.became = ops.LINEAR_SOFTMAX.name
    elif layer.axis != -1:
        raise NoMatch(
            f"all its scores are needed, which {describe(layer.product)} computes as fast in the "
            "place where they belong; only the best of them (top_k) would be faster"
        )
    else:
        substitute(layer.scores, emit(model, layer, ops.LINEAR)[0])
        head.became = ops.LINEAR.name
    if place is not None and top_k is not None:
        output = model.graph.outputs[place]
        if best is None:
            best = append_top_k(model, output, top_k, head.axis_after)
            head.became += "+TopK"
        prefix = "" if alone else f"{output.name}_"
        head.results_after = hand_out(model.graph, place, *best, top_k, head.axis_after, prefix)
    prune(model.graph, doomed)
    made = [n for n in model.graph if n.domain == ops.DOMAIN and id(n) not in known]
    head.node = str(made[0].name)
    if weight is not None:
        share_rows(model.graph, weight, present(made[0].inputs[1]))
    return head


def _reads(layer: LinearLayer) -> list[str]:
    """Return the names of what the layer reads; constants are part of it."""
    values = [layer.hidden, *(layer.quantized or ())]
    return [
        str(value.name)
        for value in values
        if isinstance(value, ir.Value) and not value.is_initializer()
    ]


def _rounding(tail: Tail) -> float:
    """Return the sum of the steps by which a way rounds the scores."""
    scales = [
        float(np.abs(constant(node.inputs[1])).max())
        for node in tail.nodes
        if node.op_type == "QuantizeLinear"
    ]
    return sum(scales)


def _softmax_of_the_scores(tail: Tail) -> ir.Node | None:
    """Return the Softmax on the way that nothing but moves and casts precede."""
    softmax = tail.distribution
    if softmax is None or softmax.op_type != "Softmax":
        return None
    return softmax if _is_of_the_scores(tail, softmax) else None


def _is_of_the_scores(tail: Tail, distribution: ir.Node) -> bool:
    return all(role == "same" for role in tail.roles[: tail.nodes.index(distribution)])


def _fuse_softmax(model: ir.Model, layer: LinearLayer, tail: Tail, softmax: ir.Node) -> None:
    """Replace the layer and the softmax behind it by one operator."""
    before = tail.nodes[: tail.nodes.index(softmax)]
    casts = [node for node in before if node.op_type == "Cast"]
    if casts:
        layer.dtype_out = ir.DataType(attribute(casts[-1], "to", None))
    probabilities = emit(model, layer, ops.LINEAR_SOFTMAX)[0]
    substitute(layer.scores, probabilities)
    for node in [*casts, softmax]:
        substitute(node.outputs[0], present(node.inputs[0]))
    cancel_transposes(model.graph, probabilities)


def _output_for_top_k(tails: list[Tail], graph: ir.Graph) -> int:
    """Return the index of the one graph output that holds the scores."""
    ends = {id(tail.end): tail.end for tail in tails if tail.end is not None}
    if not ends:
        raise NoMatch(
            f"its scores end in {describe(tails[0].nodes[-1])}, so there is no output of scores "
            "that top_k could replace; leave top_k out"
        )
    if len(ends) > 1:
        names = ", ".join(repr(end.name) for end in ends.values())
        raise NoMatch(f"its scores reach several outputs ({names}); top_k can replace only one")
    return next(index for index, value in enumerate(graph.outputs) if id(value) in ends)


def _can_fuse_top_k(model: ir.Model, tail: Tail, k: int, shapes: Shapes) -> bool:
    """Return whether the k best scores alone decide everything behind the layer."""
    choice = tail.choice
    if "other" in tail.roles:
        return False
    # One sum over all scores is enough for one softmax of the scores as they are.
    one = tail.roles.count("distribution") == 1
    softmax = tail.distribution if values_are_read(tail) else None
    if softmax is not None and not (one and _is_of_the_scores(tail, softmax)):
        return False
    opset = model.opset_imports[""]
    if choice is not None and opset < 11 and shapes.rank(present(choice.inputs[0])) is None:
        return False
    if k == 1 and any(n.op_type == "Squeeze" and not _has_axes(n) for n in tail.nodes):
        return False
    return opset > _ONE_K_UP_TO or all(
        attribute(node, "k", k) == k
        for node in model.graph
        if (node.domain, node.op_type) == (ops.DOMAIN, ops.LINEAR_TOP_K.name)
    )


def _has_axes(squeeze: ir.Node) -> bool:
    return "axes" in squeeze.attributes or len(squeeze.inputs) > 1


def _results(tails: list[Tail]) -> list[str]:
    values = []
    for tail in tails:
        ends = [tail.end] if tail.end is not None else tail.nodes[-1].outputs
        values += [str(value.name) for value in ends if is_read(value)]
    return list(dict.fromkeys(values))
