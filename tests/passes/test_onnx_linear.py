"""Every spelling of an output layer in floats: the answers stay, either way of running."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_graphs import CONSTANTS, OPSETS, D, N, check_same, hidden, model, weight, with_constants

from qcompile.passes.onnx.output_layer import OutputLayer

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


@pytest.mark.parametrize("kept", [False, True])
def test_tied_weights_of_half_precision_are_kept_once_unless_read_otherwise(kept):
    other = " z = ReduceSum(rows)" if kept else ""
    m = model(
        f"h = Gather(rows, i) t = Transpose(rows) m = MatMul(h, t) y = Add(m, b){other}",
        inputs="int64[B] i",
        outputs=f"float16[B, {N}] y" + (", float16[1, 1] z" if kept else ""),
        rows=CONSTANTS["rows"].astype(np.float16),
        b=CONSTANTS["b"].astype(np.float16),
    )
    casts = ["Cast"] if kept else ["Cast", "Cast"]
    expected = ["Gather", *casts, "Linear", "Cast"] + ["ReduceSum"] * kept
    check_same(m, expected, i=np.int64([3, 0, 36]))
    assert ("rows" in m.graph.initializers) == kept


def test_half_precision_is_computed_in_single_and_handed_out_in_half():
    m = model(
        "m = MatMul(h, w) n = Add(m, b) y = Softmax(n)",
        inputs=f"float16[B, {D}] h",
        outputs=f"float16[B, {N}] y",
        w=CONSTANTS["w"].astype(np.float16),
        b=CONSTANTS["b"].astype(np.float16),
    )
    check_same(m, ["Cast", "LinearSoftmax", "Cast"], h=hidden(5, D).astype(np.float16))


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


EQUATIONS = ["bd,nd->bn", "bd,dn->bn", "nd,bd->bn", "...d,nd->...n", " xy , zy -> xz "]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation):
    first = equation.split(",")[0].strip() == "nd"
    operands = "rows, h" if first else "h, w" if ",dn" in equation else "h, rows"
    m = with_constants(f'm = Einsum<equation="{equation}">({operands}) y = Add(m, b)')
    check_same(m, ["Linear"], h=hidden(5, D))


@pytest.mark.parametrize("equation", ["bd,nd->nb", "bd,nd->bd", "bb,nb->bn"])
def test_other_equations_say_so(equation):
    m = model(
        f'y = Einsum<equation="{equation}">(h, square)',
        inputs=f"float[{D}, {D}] h",
        outputs=f"float[{D}, {D}] y",
        square=weight(D, D),
    )
    assert (
        "is not hidden activations times" in OutputLayer(min_outputs=1)(m).report.skipped[0].reason
    )


@pytest.mark.parametrize("trans_b", [0, 1])
def test_the_fused_product_of_onnxruntime(trans_b):
    m = model(
        f"y = com.microsoft.FusedMatMul<alpha=0.5, transB={trans_b}>(h, w)",
        domains=', "com.microsoft" : 1',
        w=weight() if trans_b else weight().T.copy(),
    )
    check_same(m, ["Linear"], h=hidden(2, D))


def test_weights_stored_in_bfloat16():
    m = model(
        "f = Cast<to=1>(w) m = MatMul(h, f) y = Softmax(m)",
        w=weight().T.astype(ml_dtypes.bfloat16),
    )
    check_same(m, ["LinearSoftmax"], h=hidden(5, D))


@settings(max_examples=40, deadline=None)
@given(
    trans_a=st.booleans(),
    trans_b=st.booleans(),
    alpha=st.floats(-2, 2, width=16),
    beta=st.floats(-2, 2, width=16),
    bias=st.sampled_from(["none", "()", "1", "N", "1N"]),
    after=st.lists(st.sampled_from(["Add", "Sub", "Mul", "Div"]), max_size=3),
    reversed_operands=st.booleans(),
    opset=st.sampled_from([11, 13, 18]),
)
def test_any_gemm_and_constants_behind_it(
    trans_a, trans_b, alpha, beta, bias, after, reversed_operands, opset
):
    shapes = {"()": (), "1": (1,), "N": (N,), "1N": (1, N)}
    weights = {"w": weight() if trans_b else weight().T.copy(), "c": CONSTANTS["c"]}
    if bias != "none":
        count = int(np.prod(shapes[bias]))
        weights["b"] = weight(1, N, 4)[0, :count].reshape(shapes[bias])
    body = (
        f"v0 = Gemm<transA={int(trans_a)}, transB={int(trans_b)}, alpha={float(alpha)}, "
        f"beta={float(beta)}>(h, w{', b' if bias != 'none' else ''})"
    )
    for number, operator in enumerate(after):
        operands = [f"v{number}", "c"]
        if reversed_operands and operator in ("Add", "Mul"):
            operands.reverse()
        body += f" v{number + 1} = {operator}({', '.join(operands)})"
    m = model(
        f"{body} y = Identity(v{len(after)})",
        opset=opset,
        inputs=f"float[{D}, 5] h" if trans_a else f"float[5, {D}] h",
        outputs=f"float[5, {N}] y",
        **weights,
    )
    expected = ["Transpose"] * trans_a + ["Linear", "Identity"]
    check_same(m, expected, h=hidden(D, 5) if trans_a else hidden(5, D))
