"""The operators of domain ``qcompile``: their names and signatures, defined here and nowhere else.

torch.library, the ONNX exporter, the ONNX function bodies, the NumPy references and the
onnxruntime plugin all follow this table; the C++ adapters carry the same names and are checked
against it by a test.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "qcompile"
VERSION = 3
"""Version of the operator set, and of the packed weight layout that its operators read."""

BLOCK_ROWS = 16
"""Rows (classes) of one packed block."""

BLOCK_DEPTH = 4
"""Consecutive coordinates of one row that a packed block stores side by side."""


@dataclass(frozen=True)
class Operator:
    """Signature of one operator.

    Args:
        name: the ONNX operator type.
        inputs: names in order.
        outputs: names in order.
        attributes: name → default; its Python type is the attribute's type.
        optional: how many of the last inputs a node may leave out.
        optional_outputs: how many of the last outputs a node may leave out.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, int | float | str], ...] = ()
    optional: int = 0
    optional_outputs: int = 0

    @property
    def required(self) -> tuple[str, ...]:
        """The inputs that every node has."""
        return self.inputs[: len(self.inputs) - self.optional]

    @property
    def required_outputs(self) -> tuple[str, ...]:
        """The outputs that every node has."""
        return self.outputs[: len(self.outputs) - self.optional_outputs]


_HEAD_INPUTS = (
    "hidden",  # float [..., d]
    # float [N, d], rows for rescoring and for the function body; LinearTopK also takes bfloat16, or
    # float [0, d], where the layer is its quantised rows
    "weight",
    "bias",  # float [N]
    # uint8 [planes, ceil(N/16), ceil(d/8), 16, 4], quantised rows; see runtime/reference/index.py
    "packed",
    "scale",  # float [N], packed row times scale approximates the row
    "error",  # float [N], upper bound of the Euclidean norm of a row's quantisation error
)

_BUCKET_INPUTS = (
    # cells: uint32 [C + 1], the first block of each cell, and B
    # lsh: uint32 [tables · 2^key bits + 1], where each bucket begins, table after table, and M
    "offsets",
    # cells: int32 [16 B], the row that each packed row is, or -1
    # lsh: int32 [M], the rows of all buckets, of each table a row once at most
    "row_ids",
)

_CELL_INPUTS = (
    "centroids",  # int8 [ceil(C/16), ceil(d/4), 16, 4], the cells' mean rows, as packed
    "centroid_scale",  # float [C]
    "cell_bias",  # float [C], what the biases of a cell add to its score
    "cell_spread",  # float [C], how far its scores spread for a vector of norm 1, biases apart
    "group_offsets",  # uint32 [G + 1], the first block of centroids of each group, and ceil(C/16)
    "group_centroids",  # int8 [ceil(G/16), ceil(d/4), 16, 4], the groups' mean cells, as packed
    "group_scale",  # float [G]
    "group_bias",  # float [G], what the biases of a group add to its score
    "group_spread",  # float [G], how far its cells' scores spread for a vector of norm 1
)

LINEAR_TOP_K = Operator(
    name="LinearTopK",
    inputs=(*_HEAD_INPUTS, *_BUCKET_INPUTS, *_CELL_INPUTS),
    outputs=(
        "scores",  # float [..., k], descending
        "ids",  # int64 [..., k]; of equal scores the smaller id first
        "log_sum",  # float [..., 1], the logarithm of the sum of exp(score) over all N
    ),
    attributes=(
        ("k", 1),
        ("mode", "exact"),
        ("probes", 32),  # cells: how many are searched; lsh: buckets of each table, at most 1024
        (
            "groups",
            16,
        ),  # cells: how many groups of them are looked through; all with a guard or sum
        ("rescore", 32),  # candidates that are scored in fp32, at least k
        ("bits", 8),  # cells: of a packed value; 2 or 4 where rows are codes
        ("spread", 0.0),  # cells: how much of its spread counts for a cell
        ("guard", 0.0),  # cells: 0, or how many spreads above its score a cell may reach
        ("variance", 1.0),  # cells: how much the spread of one that is not searched adds to log_sum
        ("family", "dwta"),  # lsh: simhash, wta, dwta or doph
        ("tables", 1),  # lsh: L
        ("hashes", 1),  # lsh: K, codes of one key
        ("seed", 0),  # lsh: of the hash functions, its 64 bits as a signed number
    ),
    optional=len(_BUCKET_INPUTS) + len(_CELL_INPUTS),
    optional_outputs=1,
)
"""The k largest of ``hidden @ weight.T + bias``, or in the approximate modes most of them.

``mode`` says which rows are looked at, and how many inputs there are:

* ``exact``: all, by an int8 scan that keeps what its error bound cannot exclude;
* ``cells``: those in the learned buckets that promise most, of the groups of buckets that do.
  Packed rows lie bucket after bucket, each from a new block on, so ``packed`` is int8
  [B, ceil(d/4), 16, 4] and ``scale`` and ``error`` are [16 B]. With ``bits`` 2 or 4 it has codes of
  how far rows are from their bucket's packed centroid, uint8 [B, ceil(d * bits / 32), 16, 4]; see
  runtime/reference/codes.py;
* ``lsh``: those that share most buckets of hash tables with the hidden vector.

``exp(scores - log_sum)`` are probabilities. In mode ``cells`` ``log_sum`` is an estimate: a cell
that is not searched counts for what its centroid, its biases and its spread say. A node that has it
answers in mode ``lsh`` as in mode ``exact``: every row has a part in the sum, and the tables say
nothing of most.
"""

TOP_K_INPUTS = {
    "exact": len(_HEAD_INPUTS),
    "cells": len(_HEAD_INPUTS) + len(_BUCKET_INPUTS) + len(_CELL_INPUTS),
    "lsh": len(_HEAD_INPUTS) + len(_BUCKET_INPUTS),
}
"""How many inputs ``LinearTopK`` has in each mode."""

RESCORE = ("fp32", "bf16", "none")
"""What a file may keep of a layer's rows beside the packed ones: see ``runtime.index.store``."""

LINEAR_SOFTMAX = Operator(
    name="LinearSoftmax",
    inputs=_HEAD_INPUTS,
    outputs=("probabilities",),  # float [..., N]
)
"""``softmax(hidden @ weight.T + bias)`` over the last axis; unlikely rows keep their int8 score."""

LINEAR = Operator(name="Linear", inputs=_HEAD_INPUTS[:3], outputs=("scores",))
"""``hidden @ weight.T + bias``, every score in fp32, for graphs that hand out the scores."""

OPERATORS = (LINEAR_TOP_K, LINEAR_SOFTMAX, LINEAR)
