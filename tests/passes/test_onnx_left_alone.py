"""What is left alone, and the reason that the report gives."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_graphs import CONSTANTS, D, N, model, operators, weight, with_constants

from qcompile.errors import PassError
from qcompile.passes.onnx.output_layer import OutputLayer


@pytest.mark.parametrize(
    ("body", "keywords", "reason"),
    [
        ("y = MatMul(h, v)", {"inputs": f"float[B, {D}] h, float[{D}, {N}] v"}, "graph input"),
        ("v = Relu(w) y = MatMul(h, v)", {}, "computed by Relu 'relu_0'"),
        ("m = MatMul(h, w) n = Softplus(m) y = Add(n, n)", {}, "feed Softplus 'softplus_1'"),
        ("m = MatMul(h, w) y = Gather<axis=1>(m, i)", {"i": np.arange(N)}, "leave the axis"),
        (
            "m = MatMul(h, w) t = Transpose(m) y = Softmax(t)",
            {"outputs": f"float[{N}, B] y"},
            "axis",
        ),
        ("t = Transpose(h) m = MatMul(rows, t) y = Transpose(m)", {}, "all its scores are needed"),
        ("m = MatMul(h, w) n = Cast<to=6>(m) y = Cast<to=1>(n)", {}, "float type"),
    ],
)
def test_what_does_not_match_is_reported_with_node_and_reason(body, keywords, reason):
    m = with_constants(body, **keywords)
    before = operators(m)
    result = OutputLayer(min_outputs=1)(m)
    assert not result.modified
    assert operators(m) == before
    entry = result.report.skipped[-1]
    assert entry.name.startswith("matmul_")
    assert reason in entry.reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    w = weight().T.copy()
    w[3, 4] = value
    result = OutputLayer(min_outputs=1)(model("y = MatMul(h, w)", w=w))
    assert "'w' or its bias holds NaN or infinity" in result.report.skipped[0].reason


def test_a_weight_that_a_caller_may_replace_is_no_constant():
    m = model("y = MatMul(h, w)", inputs=f"float[B, {D}] h, float[{D}, {N}] w", w=CONSTANTS["w"])
    result = OutputLayer(min_outputs=1)(m)
    assert "default value" in result.report.skipped[0].reason


def test_a_small_layer_is_left_alone_unless_it_is_named():
    m = with_constants("y = MatMul(h, w)")
    result = OutputLayer()(m)
    assert result.report.skipped[0].reason == f"{N} outputs, fewer than 4096"
    assert OutputLayer(where="no*")(m).report.skipped[0].reason == "its names do not match 'no*'"
    for step in (
        OutputLayer(where="w"),
        OutputLayer(where="matmul_*"),
        OutputLayer(also=[weight()]),
    ):
        assert step(with_constants("y = MatMul(h, w)")).modified


def test_a_layer_inside_a_branch_is_reported():
    m = model(
        "y = If(c) <then_branch = g1 () => (float[B, 37] t) { t = MatMul(h, w) },"
        " else_branch = g2 () => (float[B, 37] e) { e = MatMul(h, w) }>",
        inputs=f"float[B, {D}] h, bool c",
        w=CONSTANTS["w"],
    )
    result = OutputLayer(min_outputs=1)(m)
    assert [entry.reason.split(";")[0] for entry in result.report.skipped] == [
        "it is inside a sub-graph"
    ] * 2


def test_an_empty_weight_is_left_alone():
    m = model("y = MatMul(h, w)", inputs="float[B, 0] h", w=np.zeros((0, N), np.float32))
    assert "of at least one" in OutputLayer(min_outputs=1)(m).report.skipped[0].reason


def test_an_old_opset_is_refused():
    m = model("y = MatMul(h, w)", w=CONSTANTS["w"])
    m.opset_imports[""] = 8
    with pytest.raises(PassError, match="opset 8"):
        OutputLayer()(m)
