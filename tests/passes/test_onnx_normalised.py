"""The k best probabilities: the k best scores and the logarithm of the partition function."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_graphs import CONSTANTS, D, N, check_best, check_same, hidden, model, operators, run

from qcompile.passes.onnx.output_layer import OutputLayer

PROBABILITIES = ["LinearTopK", "Sub", "Exp"]
LOGARITHMS = ["LinearTopK", "Sub"]


def graph(body: str, *, opset: int = 17, rank: int = 2, **keywords) -> ir.Model:
    lead = ["B", "3", "2"][: rank - 1]
    weights = {name: CONSTANTS[name] for name in ("w", "b")}
    keywords = {
        "inputs": f"float[{', '.join([*lead, str(D)])}] h",
        "outputs": f"float[{', '.join([*lead, str(N)])}] y",
        **weights,
        **keywords,
    }
    return model(f"m = MatMul(h, w) n = Add(m, b) {body}", opset=opset, **keywords)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize(
    ("kind", "expected"), [("Softmax", PROBABILITIES), ("LogSoftmax", LOGARITHMS)]
)
def test_asked_for_top_k(kind, expected, axis, opset):
    m = graph(f"y = {kind}<axis={axis}>(n)", opset=opset)
    check_best(m, 4, expected, h=hidden(5, D))


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("axis", [-1, 2])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_asked_for_top_k_of_sequences(kind, axis, opset):
    m = graph(f"y = {kind}<axis={axis}>(n)", opset=opset, rank=3)
    check_best(m, 3, PROBABILITIES[: 3 if kind == "Softmax" else 2], h=hidden(4, 3, D))


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("read", ["v, y", "v", "y"])
def test_top_k_in_the_graph(kind, opset, read):
    kinds = {"v": "float[B, 3] v", "y": "int64[B, 3] y"}
    m = graph(
        f"p = {kind}<axis=-1>(n) v, y = TopK<axis=-1>(p, k)",
        opset=opset,
        outputs=", ".join(kinds[name] for name in read.split(", ")),
        k=np.int64([3]),
    )
    expected = ["LinearTopK"]
    if "v" in read:  # ids alone need no sum
        expected = PROBABILITIES if kind == "Softmax" else LOGARITHMS
    check_same(m, expected, h=hidden(5, D))


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_max_needs_no_sum(kind, keepdims):
    m = graph(
        f"p = {kind}(n) y = ArgMax<axis=1, keepdims={keepdims}>(p)",
        outputs="int64[B, 1] y" if keepdims else "int64[B] y",
    )
    assert OutputLayer(min_outputs=1)(m).modified
    node = next(node for node in m.graph if node.op_type == "LinearTopK")
    assert len(node.outputs) == 2
    assert not {"Sub", "Exp"} & set(operators(m))


def test_the_function_has_a_sum_only_where_a_node_wants_one():
    for body, outputs in (("y = Sigmoid(n)", 2), ("y = Softmax(n)", 3)):
        m = graph(body)
        OutputLayer(min_outputs=1, top_k=2)(m)
        (function,) = m.functions.values()
        assert len(function.outputs) == outputs
        assert ("ReduceLogSumExp" in [node.op_type for node in function]) == (outputs == 3)


@pytest.mark.parametrize("first", ["Softmax", "Sigmoid"])
def test_layers_with_and_without_a_sum_share_a_function(first):
    second = {"Softmax": "Sigmoid", "Sigmoid": "Softmax"}[first]
    m = model(
        f"n = MatMul(h, w) y = {first}(n) o = MatMul(h, u) z = {second}(o)",
        outputs=f"float[B, {N}] y, float[B, {N}] z",
        w=CONSTANTS["w"],
        u=CONSTANTS["w"][:, ::-1].copy(),
    )
    feeds = {"h": hidden(5, D)}
    full = run(m, **feeds)
    assert OutputLayer(min_outputs=1, top_k=2)(m).modified
    onnx.checker.check_model(ir.to_proto(m), full_check=True)
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        for name in ("y", "z"):
            best = -np.sort(-full[name], axis=-1)[:, :2]
            np.testing.assert_allclose(answer[f"{name}_scores"], best, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_in_float16(kind):
    m = model(
        f"m = MatMul(h, w) n = Add(m, b) y = {kind}(n)",
        inputs=f"float16[B, {D}] h",
        outputs=f"float16[B, {N}] y",
        w=CONSTANTS["w"].astype(np.float16),
        b=CONSTANTS["b"].astype(np.float16),
    )
    feeds = {"h": hidden(5, D).astype(np.float16)}
    full = run(m, **feeds)["y"].astype(np.float64)
    OutputLayer(min_outputs=1, top_k=3)(m)
    onnx.checker.check_model(ir.to_proto(m), full_check=True)
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        assert answer["scores"].dtype == np.float16
        best = -np.sort(-full, axis=-1)[:, :3]
        np.testing.assert_allclose(answer["scores"], best, rtol=1e-2, atol=1e-2)


def test_softmax_in_another_float_type_than_the_scores():
    m = graph(
        "c = Cast<to=10>(n) p = Softmax(c) y = Cast<to=1>(p)",
    )
    feeds = {"h": hidden(5, D)}
    full = run(m, **feeds)["y"]
    OutputLayer(min_outputs=1, top_k=3)(m)
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)["scores"]
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, -np.sort(-full, axis=-1)[:, :3], rtol=1e-2)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("p = Softmax(n) y = Log(p)", [*PROBABILITIES, "Log"]),
        ("l = LogSoftmax(n) y = Exp(l)", [*LOGARITHMS, "Exp"]),
        ("p = Softmax(n) y = Unsqueeze(p, a)", [*PROBABILITIES, "Unsqueeze", "Unsqueeze"]),
        ("i = Identity(n) p = Softmax(i) y = Sigmoid(p)", [*PROBABILITIES, "Sigmoid"]),
    ],
)
def test_what_follows_is_repeated_on_the_best(body, expected):
    keywords = {"a": np.int64([1])} if "Unsqueeze" in body else {}
    if "Unsqueeze" in body:
        keywords["outputs"] = f"float[B, 1, {N}] y"
    check_best(graph(body, **keywords), 3, expected, h=hidden(5, D))


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(n) y = Softmax(s)",  # of other values than the scores
        "p = Softmax(n) y = Softmax(p)",  # a second sum, over all probabilities
        "p = Softmax(n) y = Clip(p)",  # changes the order
    ],
)
def test_where_all_scores_are_needed(body):
    m = graph(body)
    feeds = {"h": hidden(5, D)}
    full = run(m, **feeds)["y"]
    OutputLayer(min_outputs=1, top_k=3)(m)
    assert "LinearTopK" not in operators(m)
    for plugin in (False, True):
        best = -np.sort(-full, axis=-1)[:, :3]
        np.testing.assert_allclose(run(m, plugin, **feeds)["scores"], best, rtol=1e-4)


def test_channels_of_a_convolution():
    m = model(
        "n = Conv(h, w, b) y = Softmax<axis=1>(n)",
        inputs=f"float[B, {D}, 4] h",
        outputs=f"float[B, {N}, 4] y",
        w=CONSTANTS["rows"][:, :, None].copy(),
        b=CONSTANTS["b"],
    )
    feeds = {"h": hidden(2, D, 4)}
    full = run(m, **feeds)["y"]
    OutputLayer(min_outputs=1, top_k=3)(m)
    assert "LinearTopK" in operators(m) and "Softmax" not in operators(m)
    for plugin in (False, True):
        best = -np.sort(-full, axis=1)[:, :3]
        np.testing.assert_allclose(run(m, plugin, **feeds)["scores"], best, rtol=1e-4)
