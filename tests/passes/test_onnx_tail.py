"""Every way from the scores to the outputs of the graph."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_graphs import (
    CONSTANTS,
    D,
    N,
    check_same,
    hidden,
    model,
    operators,
    run,
    weight,
    with_constants,
)

from qcompile.passes.onnx.output_layer import OutputLayer


def test_several_uses_of_the_scores_keep_all_of_them():
    m = with_constants(
        "m = MatMul(h, w) y = Add(m, b) p = Softmax(y) q = CumSum(y, axis)",
        outputs=f"float[B, {N}] y, float[B, {N}] p, float[B, {N}] q",
        axis=np.int64(1),
    )
    check_same(m, ["Linear", "Softmax", "CumSum"], h=hidden(5, D))


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("shape", [(D,), (2, 3, D), (2, 1, 3, D)])
def test_hidden_of_any_rank(shape, opset):
    axis = len(shape) - 1
    dims = ", ".join(str(size) for size in (*shape[:-1], N))
    m = with_constants(
        f"m = MatMul(h, w) n = Add(m, b) y = Softmax<axis={axis}>(n)",
        opset=opset,
        inputs=f"float[{', '.join(map(str, shape))}] h",
        outputs=f"float[{dims}] y",
    )
    check_same(m, ["LinearSoftmax"], h=hidden(*shape))


def test_before_opset_13_a_softmax_over_joined_axes_is_left_alone():
    shapes = {"inputs": f"float[2, 3, {D}] h", "outputs": f"float[2, 3, {N}] y"}
    m = with_constants("m = MatMul(h, w) y = Softmax<axis=1>(m)", opset=11, **shapes)
    result = OutputLayer(min_outputs=1)(m)
    assert not result.modified
    assert "joins the classes" in result.report.skipped[0].reason


def test_before_opset_13_a_softmax_over_an_axis_of_one_is_the_same():
    shapes = {"inputs": f"float[2, 1, {D}] h", "outputs": f"float[2, 1, {N}] y"}
    m = with_constants("m = MatMul(h, w) y = Softmax<axis=1>(m)", opset=11, **shapes)
    check_same(m, ["LinearSoftmax"], h=hidden(2, 1, D))


@pytest.mark.parametrize(
    ("reshape", "opset"),
    [
        ("r = Constant<value_ints=[2, 3, 37]>() y = Reshape(p, r)", 17),
        ("r = Constant<value_ints=[1]>() u = Unsqueeze(p, r) y = Reshape(u, q)", 17),
        ("y = Reshape(p, q)", 9),
    ],
)
def test_reshapes_behind_the_head(reshape, opset):
    for middle, last in (
        ("p = Identity(m)", "Linear"),
        ("p = Softmax<axis=1>(m)", "LinearSoftmax"),
    ):
        m = model(
            f"m = MatMul(h, w) {middle} {reshape}",
            opset=opset,
            inputs=f"float[6, {D}] h",
            outputs=f"float[2, 3, {N}] y",
            w=CONSTANTS["w"],
            **({"q": np.int64([2, 3, -1])} if " q)" in reshape else {}),
        )
        rest = [node.op_type for node in m.graph][1:]
        check_same(m, [last, *[op for op in rest if op != "Softmax"]], h=hidden(6, D))


def test_a_reshape_that_splits_the_classes_is_left_alone():
    m = model(
        "m = MatMul(h, w) s = Constant<value_ints=[-1, 6]>() y = Reshape(m, s)",
        outputs="float[C, 6] y",
        w=weight(36).T.copy(),
    )
    result = OutputLayer(min_outputs=1)(m)
    assert "not known to keep the 36 classes" in result.report.skipped[0].reason


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("end", ["y = Identity(s)", "y = Softmax<axis=1>(s)", "y = Tanh(s)"])
def test_the_last_position_of_a_sequence(end, k, opset):
    """As language models hand out: every position has scores, one is taken."""
    m = model(
        f"m = MatMul(h, w) n = Add(m, b) s = Gather<axis=1>(n, last) {end}",
        opset=opset,
        inputs=f"float[2, 5, {D}] h",
        outputs=f"float[2, {N}] y",
        w=CONSTANTS["w"],
        b=CONSTANTS["b"],
        last=np.int64(4),
    )
    feeds = {"h": hidden(2, 5, D)}
    if k is None:
        head = "LinearSoftmax" if "Softmax" in end else "Linear"
        rest = [] if "Softmax" in end else [end.split()[2].split("(")[0]]
        check_same(m, [head, "Gather", *rest], **feeds)
        return
    full = run(m, **feeds)["y"]
    OutputLayer(min_outputs=1, top_k=k)(m)
    assert "LinearTopK" in operators(m) and "Softmax" not in operators(m)
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        order = np.argsort(-full, axis=-1, kind="stable")[:, :k]
        np.testing.assert_array_equal(answer["ids"], order)


def test_some_rows_by_slice():
    m = with_constants(
        "m = MatMul(h, w) y = Slice(m, one, two, zero)",
        inputs=f"float[4, {D}] h",
        outputs=f"float[1, {N}] y",
        zero=np.int64([0]),
        one=np.int64([1]),
        two=np.int64([2]),
    )
    check_same(m, ["Linear", "Slice"], h=hidden(4, D))


CHOICES = [
    ("i = Clip(n) v, y = TopK(i, k)", ["Linear", "Clip", "TopK"]),
    ("i = Tanh(n) v, y = TopK(i, k)", ["LinearTopK", "Tanh"]),
    ("v, y = TopK<axis=-1>(n, k)", ["LinearTopK"]),
    ("i = Identity(n) v, y = TopK(i, k)", ["LinearTopK"]),
    ("i = Sigmoid(n) v, y = TopK(i, k)", ["LinearTopK", "Sigmoid"]),
    ("p = Softmax<axis=1>(n) v, y = TopK(p, k)", ["LinearTopK", "Sub", "Exp"]),
    ("p = LogSoftmax<axis=1>(n) v, y = TopK(p, k)", ["LinearTopK", "Sub"]),
]


@pytest.mark.parametrize("opset", [10, 11, 13, 21])
@pytest.mark.parametrize(("tail", "expected"), CHOICES)
def test_top_k_of_the_graph(tail, expected, opset):
    m = model(
        f"m = MatMul(h, w) n = Add(m, b) {tail}",
        opset=opset,
        outputs="float[B, 4] v, int64[B, 4] y",
        w=CONSTANTS["w"],
        b=CONSTANTS["b"],
        k=np.int64([4]),
    )
    check_same(m, expected, h=hidden(5, D))


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("between", ["n = Identity(m)", "n = Softmax<axis=1>(m)"])
def test_arg_max(between, keepdims, opset):
    m = with_constants(
        f"m = MatMul(h, w) {between} y = ArgMax<axis=1, keepdims={keepdims}>(n)",
        opset=opset,
        outputs="int64[B, 1] y" if keepdims else "int64[B] y",
    )
    check_same(m, ["LinearTopK"] + ([] if keepdims else ["Squeeze"]), h=hidden(5, D))


def test_top_k_attribute_of_opset_9():
    m = with_constants(
        "m = MatMul(h, w) v, y = TopK<axis=1, k=3>(m)",
        opset=9,
        outputs="float[B, 3] v, int64[B, 3] y",
    )
    check_same(m, ["LinearTopK"], h=hidden(5, D))


def test_two_choices_of_different_k_before_opset_12():
    m = model(
        "m = MatMul(h, w) v, y = TopK(m, k) n = MatMul(h, u) z, x = TopK(n, l)",
        opset=11,
        outputs="float[B, 3] v, int64[B, 3] y, float[B, 2] z, int64[B, 2] x",
        w=CONSTANTS["w"],
        u=weight(N, D, 5).T.copy(),
        k=np.int64([3]),
        l=np.int64([2]),
    )
    check_same(m, ["LinearTopK", "Linear", "TopK"], h=hidden(5, D))
