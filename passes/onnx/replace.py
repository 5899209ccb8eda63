"""Puts an operator of domain ``qcompile`` in the place of one output layer."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qcompile import ops
from qcompile.passes.onnx.constants import NoMatch, attribute, describe, present
from qcompile.passes.onnx.edit import prune, substitute
from qcompile.passes.onnx.emit import emit
from qcompile.passes.onnx.linear import LinearLayer
from qcompile.passes.onnx.shapes import Shapes
from qcompile.passes.onnx.tail import Tail, chosen
from qcompile.passes.onnx.top_k import append_top_k, fuse_top_k, hand_out

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


def replace(
    model: ir.Model, layer: LinearLayer, tails: list[Tail], shapes: Shapes, top_k: int | None
) -> Head:
    """Rewrite one layer of ``model``.

    Raises:
        NoMatch: ``top_k`` is asked and no single graph output holds the scores; nothing changed.
    """
    tail = tails[0] if len(tails) == 1 and tails[0].exclusive else None
    place = None if top_k is None else _output_for_top_k(tails, model.graph)
    doomed = [*layer.nodes, *(tail.nodes if tail else [])]
    before = _results(tails)
    head = Head(
        name=layer.name,
        kind="+".join(node.op_type for node in doomed),
        became="",
        reads=[str(value.name) for value in (layer.hidden, *(layer.quantized or ()))],
        scores=str(layer.scores.name),
        outputs=layer.weight.shape[0],
        depth=layer.weight.shape[1],
        results_before=before,
        results_after=before,
    )
    k = top_k or (chosen(tail.choice) if tail and tail.choice else None)
    best = None
    if tail and k is not None and _can_fuse_top_k(model, tail, k, shapes):
        best = fuse_top_k(model, layer, tail, k, shapes)
        head.became = ops.LINEAR_TOP_K.name
    else:
        head.became = _all_scores(model, layer, tail)
    if place is not None and top_k is not None:
        if best is None:
            best = append_top_k(model, model.graph.outputs[place], top_k)
            head.became += "+TopK"
        head.results_after = hand_out(model.graph, place, *best, top_k)
    prune(model.graph, doomed)
    return head


def _all_scores(model: ir.Model, layer: LinearLayer, tail: Tail | None) -> str:
    """Replace the layer by an operator that hands out every score or probability."""
    softmax = tail.distribution if tail else None
    place = tail.nodes.index(softmax) if tail and softmax else 0
    before, roles = (tail.nodes[:place], tail.roles[:place]) if tail else ([], [])
    if softmax is None or softmax.op_type != "Softmax" or any(role != "same" for role in roles):
        substitute(layer.scores, emit(model, layer, ops.LINEAR)[0])
        return ops.LINEAR.name
    casts = [node for node in before if node.op_type == "Cast"]
    if casts:
        layer.dtype_out = ir.DataType(attribute(casts[-1], "to", None))
    substitute(layer.scores, emit(model, layer, ops.LINEAR_SOFTMAX)[0])
    for node in [*casts, softmax]:
        substitute(node.outputs[0], present(node.inputs[0]))
    return ops.LINEAR_SOFTMAX.name


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
    scores_are_read = choice is None or (choice.op_type == "TopK" and _is_read(choice.outputs[0]))
    if "other" in tail.roles or (scores_are_read and tail.distribution is not None):
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


def _is_read(value: ir.Value) -> bool:
    return value.is_graph_output() or bool(value.uses())


def _results(tails: list[Tail]) -> list[str]:
    values = []
    for tail in tails:
        ends = [tail.end] if tail.end is not None else tail.nodes[-1].outputs
        values += [str(value.name) for value in ends if _is_read(value)]
    return list(dict.fromkeys(values))
