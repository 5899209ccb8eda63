"""Replaces the huge output layers of an ONNX graph.

::

    MatMul → Add → Identity → Softmax → output       LinearSoftmax → output
    Gemm → output                                    Linear → output
    Gemm → TopK(k) → outputs                         LinearTopK(k) → outputs
    Gemm → ArgMax → output                           LinearTopK(1) → output
    Gemm → Softmax → TopK(k) → outputs               LinearTopK(k) → Sub → Exp → outputs
    any of them, asked for top_k=K                   … → scores [..., K], ids [..., K]

The way from the layer to the output is described in :mod:`qcompile.passes.onnx.tail`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from qcompile import ops
from qcompile.errors import PassError
from qcompile.passes.base import Pass, PassResult
from qcompile.passes.onnx import linear
from qcompile.passes.onnx.constants import NoMatch
from qcompile.passes.onnx.layer import LinearLayer
from qcompile.passes.onnx.replace import Head, replace
from qcompile.passes.onnx.shapes import Shapes
from qcompile.passes.onnx.tail import Tail, tails
from qcompile.report import Entry, Report

MIN_OPSET = 9
_UNREAD = ("MatMulBnb4", "FusedGemm", "GemmFastGelu", "QLinearConv", "ConvInteger")
"""Operators that may be an output layer, but whose weights this pass does not read."""


@dataclass
class Candidate:
    """A layer that can be replaced.

    Args:
        layer: the linear layer.
        tails: its ways to the outputs; several where its scores are used more than once.
    """

    layer: LinearLayer
    tails: list[Tail]


class OutputLayer(Pass[ir.Model]):
    """Replace output layers of many outputs by fused operators of domain ``qcompile``.

    Args:
        top_k: hand out the ``top_k`` best (scores, ids) in place of all scores of a layer.
        min_outputs: smallest layer that counts as huge.
        where: glob over the names of the layer's node, weight or scores; what it names is
            replaced whatever its size, and nothing else.
        also: weights [N, d] whose layers are replaced whatever their size. They are known by
            their numbers, because exporters fold and rename them.
    """

    def __init__(
        self,
        *,
        top_k: int | None = None,
        min_outputs: int = 4096,
        where: str | None = None,
        also: Sequence[np.ndarray] = (),
    ) -> None:
        self.top_k = top_k
        self.min_outputs = min_outputs
        self.where = where
        self.also = tuple(also)
        self.heads: list[Head] = []

    @property
    def name(self) -> str:
        """The name that reports and errors use."""
        return "output-layer"

    def requires(self, model: ir.Model) -> None:
        """Raise :class:`PassError` where the graph's operator set is too old."""
        opset = model.opset_imports.get("")
        if opset is None or opset < MIN_OPSET:
            raise PassError(
                f"{self.name}: the graph uses opset {opset}; {MIN_OPSET} or later is needed. "
                "Convert it with onnx.version_converter.convert_version."
            )

    def call(self, model: ir.Model) -> PassResult[ir.Model]:
        """Replace every output layer that qualifies.

        Raises:
            PassError: ``top_k`` is more than a layer's outputs.
        """
        report, shapes = Report(), Shapes(model)
        candidates = self._candidates(model, shapes, report)
        self._check_top_k(candidates)
        self.heads = []
        for candidate in candidates:
            layer = candidate.layer
            try:
                alone = len(candidates) == 1
                head = replace(model, layer, candidate.tails, shapes, self.top_k, alone)
            except NoMatch as reason:
                report.entries.append(self._skip(layer.product, str(reason)))
                continue
            self.heads.append(head)
            count = layer.weight.size + layer.bias.size
            report.entries.append(
                Entry(self.name, layer.name, head.kind, "rewritten", head.became, (count, count))
            )
        return PassResult(model, report.modified, report)

    def _candidates(self, model: ir.Model, shapes: Shapes, report: Report) -> list[Candidate]:
        """Return the layers that qualify; every other product goes to ``report``, with why."""
        found = []
        for node in model.graph.all_nodes():
            if node.domain == ops.DOMAIN:
                report.entries.append(self._skip(node, f"already {node.op_type} of {ops.DOMAIN}"))
            elif node.op_type in _UNREAD:
                report.entries.append(self._skip(node, "this operator's weights are not read"))
            elif linear.spelling(node) is not None and self._is_worth_a_word(node):
                try:
                    found.append(self._candidate(node, model, shapes))
                except NoMatch as reason:
                    report.entries.append(self._skip(node, str(reason)))
        if model.functions and not found:
            names = ", ".join(sorted({f"{key[0]}.{key[1]}" for key in model.functions}))
            report.notes.append(f"local functions were not searched: {names}")
        return found

    def _is_worth_a_word(self, node: ir.Node) -> bool:
        """Leave the many convolutions of a network unmentioned that are too small anyway."""
        if node.op_type != "Conv" or self.where is not None:
            return True
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        channels = weight.shape[0] if weight is not None and weight.shape else None
        return not isinstance(channels, int) or channels >= self.min_outputs

    def _candidate(self, node: ir.Node, model: ir.Model, shapes: Shapes) -> Candidate:
        if node.graph is not model.graph:
            raise NoMatch("it is inside a sub-graph; only the main graph is rewritten")
        matcher = linear.spelling(node)
        if matcher is None:
            raise NoMatch("it is no linear layer")
        layer = matcher(node, shapes)
        outputs = len(layer.weight)
        if self.where is None and outputs < self.min_outputs and not self._wanted(layer.weight):
            raise NoMatch(f"{outputs} outputs, fewer than {self.min_outputs}")
        linear.absorb(layer, shapes)
        if self.where is not None and not _answers(layer, self.where):
            raise NoMatch(f"its names do not match {self.where!r}")
        ways = tails(layer.scores, outputs, layer.axis, shapes, model.opset_imports[""])
        linear.settle(layer)
        return Candidate(layer, ways)

    def _wanted(self, rows: np.ndarray) -> bool:
        return any(np.array_equal(rows, weight) for weight in self.also)

    def _check_top_k(self, candidates: list[Candidate]) -> None:
        if self.top_k is None:
            return
        for candidate in candidates:
            outputs = candidate.layer.weight.shape[0]
            if not 1 <= self.top_k <= outputs:
                raise PassError(
                    f"top_k = {self.top_k} is not between 1 and the {outputs} outputs of "
                    f"{candidate.layer.name!r}."
                )

    def _skip(self, node: ir.Node, reason: str) -> Entry:
        name = node.name or (node.outputs[0].name if node.outputs else "") or ""
        return Entry(self.name, name, node.op_type, "skipped", reason)


def _answers(layer: LinearLayer, where: str) -> bool:
    names = [node.name or "" for node in layer.nodes]
    names += [layer.weight_name, layer.scores.name or ""]
    return where in names or any(fnmatchcase(name, where) for name in names)
