"""The operators of domain ``qcompile``: their names and signatures, defined here and nowhere else.

torch.library, the ONNX exporter, the ONNX function bodies, the NumPy references and the
onnxruntime plugin all follow this table; the C++ adapters carry the same names and are checked
against it by a test.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "qcompile"
VERSION = 1
"""Version of the operator set, and of the packed weight layout that its operators read."""

BLOCK_ROWS = 16
"""Rows (classes) of one packed int8 block."""

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
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, int | float | str], ...] = ()


_HEAD_INPUTS = (
    "hidden",  # float [..., d]
    "weight",  # float [N, d], rows for rescoring and for the function body
    "bias",  # float [N]
    "packed",  # int8 [ceil(N/16), ceil(d/4), 16, 4], quantised rows; see runtime/reference/index.py
    "scale",  # float [N], packed row times scale approximates the row
    "error",  # float [N], upper bound of the Euclidean norm of a row's quantisation error
)

LINEAR_TOP_K = Operator(
    name="LinearTopK",
    inputs=_HEAD_INPUTS,
    outputs=("scores", "ids"),  # float [..., k] descending, int64 [..., k]; ties: smaller id first
    attributes=(("k", 1),),
)
"""The k largest of ``hidden @ weight.T + bias``: int8 scan, error bound, fp32 rescoring."""

LINEAR_SOFTMAX = Operator(
    name="LinearSoftmax",
    inputs=_HEAD_INPUTS,
    outputs=("probabilities",),  # float [..., N]
)
"""``softmax(hidden @ weight.T + bias)`` over the last axis; unlikely rows keep their int8 score."""

LINEAR = Operator(name="Linear", inputs=_HEAD_INPUTS[:3], outputs=("scores",))
"""``hidden @ weight.T + bias``, every score in fp32, for graphs that hand out the scores."""

OPERATORS = (LINEAR_TOP_K, LINEAR_SOFTMAX, LINEAR)
