"""Layers whose classes lie on another axis than the last: convolutions of one point, W · h."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_graphs import CONSTANTS, D, N, check_best, check_same, hidden, model, run, weight

from qcompile.passes.onnx.output_layer import OutputLayer

SHAPES = {1: (2, 5), 2: (2, 3, 5), 3: (2, 1, 3, 2)}
"""Batch and places of a convolution over one, two or three dimensions."""


def conv(
    body: str, places: int = 1, outputs: str = "", opset: int = 17, **more: np.ndarray
) -> ir.Model:
    batch, *grid = SHAPES[places]
    dims = ", ".join(map(str, grid))
    kernel = weight().reshape(N, D, *(1 for _ in grid))
    return model(
        f"c = Conv(h, kernel, b) {body}",
        opset=opset,
        inputs=f"float[{batch}, {D}, {dims}] h",
        outputs=outputs or f"float[{batch}, {N}, {dims}] y",
        kernel=kernel,
        b=CONSTANTS["b"],
        **more,
    )


def activations(places: int) -> np.ndarray:
    batch, *grid = SHAPES[places]
    return hidden(batch, D, *grid)


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_the_best_class_of_every_place(places, keepdims, opset):
    batch, *grid = SHAPES[places]
    dims = ", ".join(map(str, [batch, 1, *grid] if keepdims else [batch, *grid]))
    m = conv(f"y = ArgMax<axis=1, keepdims={keepdims}>(c)", places, f"int64[{dims}] y", opset=opset)
    after = ["Transpose", "LinearTopK", "Transpose"] + ["Squeeze"] * (not keepdims)
    check_same(m, after, h=activations(places))


@pytest.mark.parametrize("opset", [13, 21])
def test_a_softmax_behind_a_transpose_needs_no_transpose_any_more(opset):
    """As recognisers of speech and text end: [B, N, T] → [B, T, N] → Softmax."""
    m = conv(
        "t = Transpose<perm=[0, 2, 1]>(c) y = Softmax<axis=2>(t)",
        outputs=f"float[2, 5, {N}] y",
        opset=opset,
    )
    check_same(m, ["Transpose", "LinearSoftmax"], h=activations(1))


def test_a_softmax_over_the_channels():
    m = conv("y = Softmax<axis=1>(c)", 2)
    check_same(m, ["Transpose", "LinearSoftmax", "Transpose"], h=activations(2))


def test_before_opset_13_a_softmax_over_the_channels_joins_the_places():
    result = OutputLayer(min_outputs=1)(conv("y = Softmax<axis=1>(c)", 2, opset=11))
    assert "joins the classes" in result.report.skipped[0].reason


@pytest.mark.parametrize("places", [1, 2])
def test_the_best_of_all_scores_take_the_place_of_the_channels(places):
    check_best(
        conv("y = Identity(c)", places),
        3,
        ["Transpose", "LinearTopK", "Transpose", "Transpose"],
        axis=1,
        h=activations(places),
    )


REST = {
    "squeezed": ("y = Squeeze(c, two)", 2, f"float[2, {N}, 5] y", 1),
    "flattened": ("y = Reshape(c, flat)", 2, f"float[2, {N}, 15] y", 1),
    "copied": ("y = Reshape(c, copy)", 2, f"float[2, {N}, 15] y", 1),
    "turned": ("t = Transpose<perm=[2, 0, 1]>(c) y = Sigmoid(t)", 1, f"float[5, 2, {N}] y", 2),
    "wider": ("y = Unsqueeze(c, two)", 1, f"float[2, {N}, 1, 5] y", 1),
    "sliced": ("y = Slice(c, one, two, two)", 1, f"float[2, {N}, 1] y", 1),
    "gathered": ("y = Gather<axis=2>(c, spots)", 1, f"float[2, {N}, 2, 2] y", 1),
    "taken": ("y = Gather<axis=0>(c, one)", 1, f"float[1, {N}, 5] y", 1),
}
NUMBERS = {
    "two": np.int64([2]),
    "one": np.int64([1]),
    "flat": np.int64([0, N, -1]),
    "copy": np.int64([0, 0, -1]),
    "spots": np.int64([[4, 0], [1, 1]]),
}


@pytest.mark.parametrize("name", REST)
def test_what_follows_is_repeated_on_the_best(name):
    body, places, outputs, axis = REST[name]
    used = {key: value for key, value in NUMBERS.items() if f" {key}" in body}
    if places == 2 and name == "squeezed":
        m = model(
            f"c = Conv(h, kernel, b) {body}",
            inputs=f"float[2, {D}, 1, 5] h",
            outputs=outputs,
            kernel=weight().reshape(N, D, 1, 1),
            b=CONSTANTS["b"],
            **used,
        )
        feeds = {"h": hidden(2, D, 1, 5)}
    else:
        m, feeds = conv(body, places, outputs, **used), {"h": activations(places)}
    full = run(m, **feeds)["y"]
    result = OutputLayer(min_outputs=1, top_k=3)(m)
    assert result.report.entries[0].reason == "LinearTopK", str(result.report)
    order = np.take(np.argsort(-full, axis=axis, kind="stable"), np.arange(3), axis)
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        np.testing.assert_array_equal(answer["ids"], order)
        best = np.take_along_axis(full, order, axis)
        np.testing.assert_allclose(answer["scores"], best, rtol=1e-3, atol=1e-5)


def test_all_scores_stay_with_the_convolution():
    m = conv("y = Identity(c)")
    result = OutputLayer(min_outputs=1)(m)
    assert not result.modified
    assert "only the best of them (top_k) would be faster" in result.report.skipped[0].reason
    assert [node.op_type for node in m.graph] == ["Conv", "Identity"]


@pytest.mark.parametrize(
    ("attributes", "kernel", "reason"),
    [
        ("", (N, D, 3), "covers more than one point"),
        ("<strides=[2]>", (N, D, 1), "strides or pads"),
        ("<pads=[1, 0]>", (N, D, 1), "strides or pads"),
        ("<group=13>", (N * D, 1, 1), "in groups"),
    ],
)
def test_other_convolutions_say_why(attributes, kernel, reason):
    body = f"c = Conv{attributes}(h, kernel) y = ArgMax<axis=1>(c)"
    m = model(
        body,
        inputs=f"float[2, {D}, 5] h",
        outputs="int64[2, 1, T] y",
        kernel=np.zeros(kernel, np.float32),
    )
    assert reason in OutputLayer(min_outputs=1)(m).report.skipped[0].reason


def test_small_convolutions_are_not_mentioned():
    assert not OutputLayer(min_outputs=N + 1)(conv("y = Identity(c)")).report.entries


@pytest.mark.parametrize("opset", [9, 13])
def test_the_weight_as_left_operand(opset):
    m = model(
        "m = MatMul(rows, h) n = Add(m, column) y = ArgMax<axis=1>(n)",
        opset=opset,
        inputs=f"float[2, {D}, 5] h",
        outputs="int64[2, 1, 5] y",
        rows=CONSTANTS["rows"],
        column=CONSTANTS["b"][:, None],
    )
    check_same(m, ["Transpose", "LinearTopK", "Transpose"], h=hidden(2, D, 5))


@settings(max_examples=20, deadline=None)
@given(
    places=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    rows=st.integers(2, 40),
    depth=st.integers(1, 20),
    k=st.integers(1, 2),
    bias=st.booleans(),
)
def test_any_shape(places, rows, depth, k, bias):
    dims = ", ".join(map(str, places))
    m = model(
        f"y = Conv(h, kernel{', b' if bias else ''})",
        inputs=f"float[B, {depth}, {dims}] h",
        outputs=f"float[B, {rows}, {dims}] y",
        kernel=weight(rows, depth).reshape(rows, depth, *(1 for _ in places)),
        **({"b": weight(1, rows, 3)[0]} if bias else {}),
    )
    after = ["Transpose", "LinearTopK", "Transpose", "Transpose"]
    check_best(m, k, after, axis=1, h=hidden(2, depth, *places))
