"""The pass over output layers: every spelling of the layer, every way to the outputs.

Models are written as ONNX text; each is run in onnxruntime before and after.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import PassError
from qcompile.passes.onnx.output_layer import OutputLayer

N, D = 37, 13
"""Odd on purpose: neither fills a block of the packed layout."""


def model(
    body: str,
    *,
    opset: int = 17,
    inputs: str = f"float[B, {D}] h",
    outputs: str = f"float[B, {N}] y",
    domains: str = "",
    **weights: np.ndarray,
) -> ir.Model:
    """Parse an ONNX graph; keyword arrays become initializers."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}{domains}]>
    graph ({inputs}) => ({outputs}) {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{number}"
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def weight(rows: int = N, columns: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def hidden(*shape: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal(shape).astype(np.float32)


def run(m: ir.Model, plugin: bool = False, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Else onnxruntime may quantise the activations too, which the graph does not ask for.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if plugin:
        import qcompile

        options = qcompile.session_options(options)
    content = ir.to_proto(m).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def operators(m: ir.Model) -> list[str]:
    return [node.op_type for node in m.graph]


def signature(m: ir.Model) -> list[tuple]:
    values = [*m.graph.inputs, *m.graph.outputs]
    return [(value.name, str(value.type), str(value.shape)) for value in values]


def check_same(m: ir.Model, expected: list[str], step: OutputLayer | None = None, **feeds) -> None:
    """Rewrite ``m``; operators must be as expected and answers as before, either way of running."""
    before, shape_before = run(m, **feeds), signature(m)
    result = (step or OutputLayer(min_outputs=1))(m)
    assert result.modified, str(result.report)
    assert operators(m) == expected
    assert signature(m) == shape_before
    onnx.checker.check_model(ir.to_proto(m), full_check=True)
    for plugin in (False, True):
        after = run(m, plugin, **feeds)
        for name, values in before.items():
            if values.dtype == np.int64:
                np.testing.assert_array_equal(after[name], values)
            else:
                np.testing.assert_allclose(
                    after[name], values, rtol=2e-3, atol=1e-4, err_msg=f"{name}, plugin={plugin}"
                )
    again = OutputLayer(min_outputs=1)(m)
    assert not again.modified
    assert any("already" in entry.reason for entry in again.report.skipped)
    assert operators(m) == expected


OPSETS = (9, 11, 13, 17, 21)
GEMMS = [
    *itertools.product((0, 1), (0, 1), (1.0,), (1.0,), ("N", "none")),
    (0, 0, 0.5, 2.0, "N"),
    (1, 1, -1.5, 0.0, "N"),
    (0, 1, 1.0, 1.0, "1N"),
    (0, 1, 1.0, -0.25, "1"),
    (0, 0, 1.0, 1.0, "scalar"),
]


@pytest.mark.parametrize(
    ("trans_a", "trans_b", "alpha", "beta", "bias", "opset"),
    # Before opset 11 Gemm's bias could not be left out.
    [(*gemm, o) for gemm in GEMMS for o in OPSETS if gemm[4] != "none" or o >= 11],
)
def test_gemm(trans_a, trans_b, alpha, beta, bias, opset):
    shapes = {"N": (N,), "1N": (1, N), "1": (1,), "scalar": (), "none": None}
    w = weight() if trans_b else weight().T.copy()
    weights = {"w": w}
    if shapes[bias] is not None:
        weights["b"] = np.asarray(weight(1, N, 1).ravel()[: np.prod(shapes[bias], dtype=int)])
        weights["b"] = weights["b"].reshape(shapes[bias])
    m = model(
        f"y = Gemm<transA={trans_a}, transB={trans_b}, alpha={alpha}, beta={beta}>"
        f"(h, w{', b' if 'b' in weights else ''})",
        opset=opset,
        inputs=f"float[{D}, 5] h" if trans_a else f"float[B, {D}] h",
        outputs=f"float[{'5' if trans_a else 'B'}, {N}] y",
        **weights,
    )
    expected = ["Transpose", "Linear"] if trans_a else ["Linear"]
    check_same(m, expected, h=hidden(D, 5) if trans_a else hidden(5, D))


CONSTANTS = {
    "w": weight().T.copy(),
    "rows": weight(),
    "b": weight(1, N, 1)[0],
    "c": np.abs(weight(1, N, 2))[0] + 1,
    "s": np.float32([3.0]),
}


def with_constants(body: str, **keywords) -> ir.Model:
    """As :func:`model`, with those of the constants that ``body`` names."""
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: array for name, array in CONSTANTS.items() if name in words}
    return model(body, **{**used, **keywords})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = MatMul(h, w)", ["Linear"]),
        ("m = MatMul(h, w) y = Add(m, b)", ["Linear"]),
        ("m = MatMul(h, w) y = Add(b, m)", ["Linear"]),
        ("m = MatMul(h, w) n = Sub(m, b) y = Mul(n, c)", ["Linear"]),
        ("m = MatMul(h, w) n = Mul(c, m) y = Div(n, s)", ["Linear"]),
        ("t = Transpose(rows) m = MatMul(h, t) y = Add(m, b)", ["Linear"]),
        ("i = Identity(w) m = MatMul(h, i) j = Identity(b) y = Add(j, m)", ["Linear"]),
        ("m = MatMul(h, w) n = Add(m, b) o = Identity(n) y = Dropout(o)", None),
        ("m = MatMul(h, w) n = Add(m, b) y = Sigmoid(n)", ["Linear", "Sigmoid"]),
        ("m = MatMul(h, w) n = Add(m, b) y = LogSoftmax<axis=1>(n)", ["Linear", "LogSoftmax"]),
        ("m = MatMul(h, w) n = Add(m, b) y = Softmax<axis=1>(n)", ["LinearSoftmax"]),
        ("m = MatMul(h, w) i = Identity(m) y = Softmax<axis=1>(i)", ["LinearSoftmax", "Identity"]),
        ("m = MatMul(h, w) i = Softmax<axis=1>(m) y = Identity(i)", ["LinearSoftmax", "Identity"]),
    ],
)
def test_matmul(body, expected, opset):
    m = with_constants(body, opset=opset)
    check_same(m, expected or ["Linear", "Identity", "Dropout"], h=hidden(5, D))


def test_several_uses_of_the_scores_keep_all_of_them():
    m = with_constants(
        "m = MatMul(h, w) y = Add(m, b) p = Softmax(y) q = CumSum(y, axis)",
        outputs=f"float[B, {N}] y, float[B, {N}] p, float[B, {N}] q",
        axis=np.int64(1),
    )
    check_same(m, ["Linear", "Softmax", "CumSum"], h=hidden(5, D))


def test_a_tied_weight_is_kept_once_for_both_uses():
    m = with_constants(
        "h = Gather(rows, i) t = Transpose(rows) y = MatMul(h, t)", inputs="int64[B] i"
    )
    check_same(m, ["Gather", "Linear"], i=np.int64([3, 0, 36]))
    assert [name for name in m.graph.initializers if "weight" in name] == []


def test_a_tied_weight_in_another_layout_keeps_its_other_use():
    m = with_constants(
        "y = MatMul(h, w) z = ReduceSum(w)", outputs=f"float[B, {N}] y, float[1, 1] z"
    )
    check_same(m, ["Linear", "ReduceSum"], h=hidden(4, D))
    assert {"w", "w.weight"} <= set(m.graph.initializers)


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
    assert ("LinearTopK" in operators(m)) == ("Softmax" not in end)
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
    ("p = Softmax<axis=1>(n) v, y = TopK(p, k)", ["LinearSoftmax", "TopK"]),
    ("p = LogSoftmax<axis=1>(n) v, y = TopK(p, k)", ["Linear", "LogSoftmax", "TopK"]),
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


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 21])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = MatMul(h, w) y = Add(m, b)", ["LinearTopK"]),
        ("m = MatMul(h, w) n = Add(m, b) y = Sigmoid(n)", ["LinearTopK", "Sigmoid"]),
        ("m = MatMul(h, w) n = Add(m, b) y = Softmax<axis=1>(n)", ["LinearSoftmax", "TopK"]),
        ("m = MatMul(h, w) y = LogSoftmax<axis=1>(m)", ["Linear", "LogSoftmax", "TopK"]),
    ],
)
def test_asked_for_top_k_the_output_gives_way_to_the_best_of_it(body, expected, opset):
    m = with_constants(body, opset=opset)
    feeds = {"h": hidden(5, D)}
    full = run(m, **feeds)["y"]
    assert OutputLayer(min_outputs=1, top_k=4)(m).modified
    assert operators(m) == expected
    assert [value.name for value in m.graph.outputs] == ["scores", "ids"]
    assert [str(value.shape) for value in m.graph.outputs] == ["[B,4]", "[B,4]"]
    onnx.checker.check_model(ir.to_proto(m), full_check=True)
    order = np.argsort(-full, axis=-1, kind="stable")[:, :4]
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        np.testing.assert_array_equal(answer["ids"], order)
        best = np.take_along_axis(full, order, -1)
        np.testing.assert_allclose(answer["scores"], best, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("opset", [9, 13])
def test_asked_for_top_k_reshapes_are_repeated_on_the_best(opset):
    m = model(
        "m = MatMul(h, w) r = Reshape(m, q) y = Transpose<perm=[1, 0, 2]>(r)",
        opset=opset,
        inputs=f"float[6, {D}] h",
        outputs=f"float[3, 2, {N}] y",
        w=CONSTANTS["w"],
        q=np.int64([2, 3, -1]),
    )
    feeds = {"h": hidden(6, D)}
    full = run(m, **feeds)["y"]
    OutputLayer(min_outputs=1, top_k=1)(m)
    assert "LinearTopK" in operators(m)
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        np.testing.assert_array_equal(answer["ids"], full.argmax(-1)[..., None])


def test_names_that_are_taken_are_not_used_for_the_best():
    m = with_constants(
        "scores = MatMul(h, w) ids = Softmax(scores) y = Identity(ids)",
        inputs=f"float[B, {D}] h",
    )
    feeds = {"h": hidden(5, D)}
    full = run(m, **feeds)["y"]
    OutputLayer(min_outputs=1, top_k=2)(m)
    assert [value.name for value in m.graph.outputs] == ["scores", "ids"]
    np.testing.assert_array_equal(run(m, **feeds)["ids"][:, 0], full.argmax(-1))


def test_half_precision_is_computed_in_single_and_handed_out_in_half():
    m = model(
        "m = MatMul(h, w) n = Add(m, b) y = Softmax(n)",
        inputs=f"float16[B, {D}] h",
        outputs=f"float16[B, {N}] y",
        w=CONSTANTS["w"].astype(np.float16),
        b=CONSTANTS["b"].astype(np.float16),
    )
    check_same(m, ["Cast", "LinearSoftmax", "Cast"], h=hidden(5, D).astype(np.float16))


@pytest.mark.parametrize("axis", [0, 1])
def test_quantised_weights_are_read(axis):
    rng = np.random.default_rng(3)
    m = model(
        f"w = DequantizeLinear<axis={axis}>(q, s, z) m = MatMul(h, w) y = Add(m, b)",
        q=rng.integers(-128, 128, (D, N)).astype(np.int8),
        s=rng.random((D, N)[axis]).astype(np.float32),
        z=rng.integers(-8, 8, (D, N)[axis]).astype(np.int8),
        b=CONSTANTS["b"],
    )
    check_same(m, ["Linear"], h=hidden(5, D) / 100)


def test_weights_quantised_in_blocks_are_read():
    rng = np.random.default_rng(3)
    m = model(
        "w = DequantizeLinear<axis=0, block_size=5>(q, s, z) y = MatMul(h, w)",
        opset=21,
        q=rng.integers(0, 256, (15, N)).astype(np.uint8),
        s=rng.random((3, N)).astype(np.float32),
        z=rng.integers(0, 256, (3, N)).astype(np.uint8),
        inputs="float[B, 15] h",
    )
    check_same(m, ["Linear"], h=hidden(5, 15) / 100)


def test_dynamic_quantisation_of_onnxruntime_keeps_its_rounded_activations():
    rng = np.random.default_rng(3)
    m = model(
        "q, qs, qz = DynamicQuantizeLinear(h) i = MatMulInteger(q, w, qz, wz) "
        "f = Cast<to=1>(i) s = Mul(qs, ws) m = Mul(f, s) y = Add(m, b)",
        w=rng.integers(-128, 128, (D, N)).astype(np.int8),
        wz=np.int8(3),
        ws=np.float32(0.01),
        b=CONSTANTS["b"],
    )
    check_same(m, ["DynamicQuantizeLinear", "DequantizeLinear", "Linear"], h=hidden(5, D))


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
        ("t = Transpose(h) m = MatMul(rows, t) y = Transpose(m)", {}, "left operand"),
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


def test_top_k_asks_for_one_layer():
    body = "y = MatMul(h, w) z = MatMul(h, u)"
    outputs = f"float[B, {N}] y, float[B, {N}] z"
    m = model(body, outputs=outputs, w=CONSTANTS["w"], u=weight(N, D, 5).T.copy())
    with pytest.raises(PassError, match="2 layers are huge"):
        OutputLayer(min_outputs=1, top_k=2)(m)
    with pytest.raises(PassError, match="not between 1 and the 37 outputs"):
        OutputLayer(min_outputs=1, where="w", top_k=38)(m)
    assert OutputLayer(min_outputs=1, where="w", top_k=2)(m).modified
    assert [value.name for value in m.graph.outputs] == ["scores", "ids", "z"]


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("m = MatMul(h, w) y = ArgMax<axis=1>(m)", "int64[B, 1] y", "leave top_k out"),
        (
            "y = MatMul(h, w) z = Softmax(y)",
            f"float[B, {N}] y, float[B, {N}] z",
            "several outputs ('y', 'z')",
        ),
    ],
)
def test_top_k_where_no_single_output_holds_the_scores(body, outputs, reason):
    m = with_constants(body, outputs=outputs)
    before = operators(m)
    result = OutputLayer(min_outputs=1, top_k=2)(m)
    assert reason in result.report.skipped[0].reason
    assert operators(m) == before


def test_an_empty_weight_is_left_alone():
    m = model("y = MatMul(h, w)", inputs="float[B, 0] h", w=np.zeros((0, N), np.float32))
    assert "of at least one" in OutputLayer(min_outputs=1)(m).report.skipped[0].reason


def test_an_old_opset_is_refused():
    m = model("y = MatMul(h, w)", w=CONSTANTS["w"])
    m.opset_imports[""] = 8
    with pytest.raises(PassError, match="opset 8"):
        OutputLayer()(m)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 70),
    depth=st.integers(1, 40),
    batch=st.integers(1, 5),
    softmax=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(rows, depth, batch, softmax, transposed, seed):
    w = weight(rows, depth, seed)
    product = "t = Transpose(w) m = MatMul(h, t)" if transposed else "m = MatMul(h, w)"
    end = "y = Softmax(m)" if softmax else "y = Identity(m)"
    m = model(
        f"{product} {end}",
        inputs=f"float[B, {depth}] h",
        outputs=f"float[B, {rows}] y",
        w=w if transposed else w.T.copy(),
    )
    expected = ["LinearSoftmax"] if softmax else ["Linear", "Identity"]
    check_same(m, expected, h=hidden(batch, depth))
