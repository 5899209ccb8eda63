"""Output layers whose weights, and perhaps activations, are integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_graphs import CONSTANTS, D, N, check_same, hidden, model, operators, run

from qcompile.passes.onnx.output_layer import OutputLayer

MICROSOFT = {"domains": ', "com.microsoft" : 1'}


def integers(kind: type, *shape: int, seed: int = 3, spread: int = 0) -> np.ndarray:
    low, high = (-spread, spread) if spread else (np.iinfo(kind).min, np.iinfo(kind).max)
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(kind)


def positive(*shape: int, seed: int = 4) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) / 50 + 0.01).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
def test_quantised_weights_are_read(axis):
    m = model(
        f"w = DequantizeLinear<axis={axis}>(q, s, z) m = MatMul(h, w) y = Add(m, b)",
        q=integers(np.int8, D, N),
        s=positive((D, N)[axis]),
        z=integers(np.int8, (D, N)[axis], spread=8),
        b=CONSTANTS["b"],
    )
    check_same(m, ["Linear"], h=hidden(5, D) / 100)


def test_weights_quantised_in_blocks_are_read():
    m = model(
        "w = DequantizeLinear<axis=0, block_size=5>(q, s, z) y = MatMul(h, w)",
        opset=21,
        q=integers(np.uint8, 15, N),
        s=positive(3, N),
        z=integers(np.uint8, 3, N),
        inputs="float[B, 15] h",
    )
    check_same(m, ["Linear"], h=hidden(5, 15) / 100)


def test_dynamic_quantisation_of_onnxruntime_keeps_its_rounded_activations():
    m = model(
        "q, qs, qz = DynamicQuantizeLinear(h) i = MatMulInteger(q, w, qz, wz) "
        "f = Cast<to=1>(i) s = Mul(qs, ws) m = Mul(f, s) y = Add(m, b)",
        w=integers(np.int8, D, N),
        wz=np.int8(3),
        ws=np.float32(0.01),
        b=CONSTANTS["b"],
    )
    check_same(m, ["DynamicQuantizeLinear", "DequantizeLinear", "Linear"], h=hidden(5, D))


@pytest.mark.parametrize("zero_point", [True, False])
def test_an_integer_product_with_constant_scales(zero_point):
    m = model(
        f"q = Cast<to=2>(h) i = MatMulInteger(q, w{', z' if zero_point else ''}) "
        "f = Cast<to=1>(i) y = Mul(f, s)",
        w=integers(np.int8, D, N),
        s=positive(N),
        **({"z": np.uint8(7)} if zero_point else {}),
    )
    check_same(m, ["Cast", "DequantizeLinear", "Linear"], h=np.abs(hidden(5, D)) * 20)


@pytest.mark.parametrize("rank", [(), (1,)])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_the_fused_dynamic_products_of_onnxruntime(kind, rank):
    constants = {
        "w": integers(kind, D, N),
        "ws": positive(*(rank or (N,))),
        "wz": integers(kind, *(rank or (N,))),
        "b": CONSTANTS["b"],
    }
    m = model("y = com.microsoft.DynamicQuantizeMatMul(h, w, ws, wz, b)", **MICROSOFT, **constants)
    after = ["DynamicQuantizeLinear", "DequantizeLinear", "Linear"]
    check_same(m, after, h=hidden(5, D))
    m = model(
        "q, qs, qz = DynamicQuantizeLinear(h) "
        "y = com.microsoft.MatMulIntegerToFloat(q, w, qs, ws, , wz, b)",
        **MICROSOFT,
        **constants,
    )
    check_same(m, after, h=hidden(5, D))


STATIC = {
    "qs": np.float32(0.04),
    "qz": np.uint8(120),
    "w": integers(np.int8, D, N),
    "ws": np.float32(0.01),
    "wz": np.int8(2),
    "ys": np.float32(0.02),
    "yz": np.uint8(128),
}


def check_rounded(m, after: list[str], step: float, k: int | None = None) -> None:
    """Scores that are rounded on their way may land on the neighbour of where they were."""
    feeds = {"h": hidden(5, D)}
    before = run(m, **feeds)["y"]
    assert OutputLayer(min_outputs=1, top_k=k)(m).modified
    assert operators(m) == after
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        if k is None:
            assert answer["y"].dtype == before.dtype
            assert np.abs(answer["y"].astype(float) - before).max() <= 1.01 * step
            assert (answer["y"] == before).mean() > 0.95
        else:
            best = -np.sort(-before, axis=-1)[:, :k]
            assert np.abs(answer["scores"] - best).max() <= 1.01 * step
            found = np.take_along_axis(before, answer["ids"], -1)
            assert np.abs(found - answer["scores"]).max() <= 1.01 * step


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("k", [None, 3])
def test_a_product_that_hands_integers_on(per_column, k):
    constants = dict(STATIC)
    if per_column:
        constants |= {"ws": positive(N) / 2, "wz": np.zeros(N, np.int8)}
    m = model(
        "q = QuantizeLinear(h, qs, qz) p = QLinearMatMul(q, qs, qz, w, ws, wz, ys, yz) "
        "y = DequantizeLinear(p, ys, yz)",
        **constants,
    )
    head = "Linear" if k is None else "LinearTopK"
    after = ["QuantizeLinear", "DequantizeLinear", head, "QuantizeLinear", "DequantizeLinear"]
    check_rounded(m, after, 0.02, k)


def test_integer_scores_stay_integers():
    m = model(
        "q = QuantizeLinear(h, qs, qz) y = QLinearMatMul(q, qs, qz, w, ws, wz, ys, yz)",
        outputs=f"uint8[B, {N}] y",
        **STATIC,
    )
    check_rounded(m, ["QuantizeLinear", "DequantizeLinear", "Linear", "QuantizeLinear"], 1)


@pytest.mark.parametrize("integers_out", [False, True])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_quantised_gemm_of_onnxruntime(integers_out, trans_b, alpha):
    constants = {key: value for key, value in STATIC.items() if integers_out or key[0] != "y"}
    if trans_b:
        constants["w"] = STATIC["w"].T.copy()
    end = ", ys, yz) y = DequantizeLinear(p, ys, yz)" if integers_out else ") y = Identity(p)"
    m = model(
        "q = QuantizeLinear(h, qs, qz) p = com.microsoft.QGemm"
        f"<alpha={alpha}, transB={trans_b}>(q, qs, qz, w, ws, wz, b{end}",
        **MICROSOFT,
        b=integers(np.int32, N, spread=3000),
        **constants,
    )
    if integers_out:
        after = ["Linear", "QuantizeLinear", "DequantizeLinear"]
        check_rounded(m, ["QuantizeLinear", "DequantizeLinear", *after], 0.02)
    else:
        after = ["QuantizeLinear", "DequantizeLinear", "Linear", "Identity"]
        check_same(m, after, h=hidden(5, D))


@pytest.mark.parametrize("k", [None, 2])
def test_quantised_and_dequantised_all_along(k):
    """As onnxruntime's quantiser writes by default: pairs of nodes round every value."""
    m = model(
        "q = QuantizeLinear(h, qs, qz) g = DequantizeLinear(q, qs, qz) "
        "v = DequantizeLinear(w, ws, wz) m = MatMul(g, v) "
        "p = QuantizeLinear(m, ys, yz) y = DequantizeLinear(p, ys, yz)",
        **STATIC,
    )
    head = "Linear" if k is None else "LinearTopK"
    pair = ["QuantizeLinear", "DequantizeLinear"]
    check_rounded(m, [*pair, head, *pair], 0.02, k)


def test_a_scale_for_each_class_does_not_keep_the_order():
    m = model(
        "m = MatMul(h, w) p = QuantizeLinear<axis=1>(m, s, z) "
        "y = DequantizeLinear<axis=1>(p, s, z)",
        w=CONSTANTS["w"],
        s=positive(N),
        z=np.zeros(N, np.int8),
    )
    result = OutputLayer(min_outputs=1)(m)
    assert "a scale for each class" in result.report.skipped[0].reason


def packed(bits: int, depth: int, size: int, zero_points: bool, kind: type) -> dict:
    blocks = -(-depth // size)
    found = {
        "w": integers(np.uint8, N, blocks, size * bits // 8),
        "s": positive(N * blocks).astype(kind),
    }
    if zero_points:
        found["z"] = integers(np.uint8, N * -(-blocks * bits // 8))
    return found


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    depth=st.sampled_from([16, 24, 40, 64]),
    size=st.sampled_from([16, 32]),
    zero_points=st.booleans(),
    bias=st.booleans(),
)
def test_weights_of_few_bits_in_blocks(bits, depth, size, zero_points, bias):
    arrays = packed(bits, depth, size, zero_points, np.float32)
    if bias:
        arrays["b"] = CONSTANTS["b"]
    m = model(
        f"y = com.microsoft.MatMulNBits<K={depth}, N={N}, bits={bits}, block_size={size}>"
        f"(h, w, s{', z' if zero_points else ', ' if bias else ''}{', , b' if bias else ''})",
        inputs=f"float[B, {depth}] h",
        **MICROSOFT,
        **arrays,
    )
    check_same(m, ["Linear"], h=hidden(5, depth) / 10)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("K=64, N=37, bits=3, block_size=16", "are no matrix"),
        ("K=64, N=37, bits=4, block_size=0", "are no matrix"),
        ("K=-64, N=37, bits=4, block_size=16", "are no matrix"),
        ("K=640, N=37, bits=4, block_size=16", "not what it claims"),
        ("K=64, N=37000000000, bits=4, block_size=16", "not what it claims"),
        ("K=64, N=36, bits=4, block_size=16", "not what it claims"),
    ],
)
def test_blocks_that_are_not_what_they_claim(attributes, reason):
    m = model(
        f"y = com.microsoft.MatMulNBits<{attributes}>(h, w, s)",
        inputs="float[B, 64] h",
        **MICROSOFT,
        **packed(4, 64, 16, False, np.float32),
    )
    assert reason in OutputLayer(min_outputs=1)(m).report.skipped[0].reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "y = com.microsoft.MatMulBnb4<K=13, N=37, block_size=16, quant_type=1>(h, w, s)",
            "not read",
        ),
        ("y = com.microsoft.FusedGemm(h, w, s)", "not read"),
        ("y = com.microsoft.DynamicQuantizeMatMul(h, s, s)", "weight is float32"),
        ("y = com.microsoft.DynamicQuantizeMatMul(h, w, s)", "13 scales or zero points for 37"),
        ("y = com.microsoft.QGemm(h, s, s)", "inputs, not 6 to 9"),
        ("y = com.microsoft.DynamicQuantizeMatMul(h)", "an input is missing"),
    ],
)
def test_what_is_not_read_says_why(body, reason):
    m = model(body, **MICROSOFT, w=integers(np.int8, D, N), s=positive(D, 1))
    assert reason in OutputLayer(min_outputs=1)(m).report.skipped[0].reason
