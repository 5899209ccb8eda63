"""Asked for the k best, the output of scores gives way to them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_graphs import CONSTANTS, D, N, hidden, model, operators, run, weight, with_constants

from qcompile.errors import PassError
from qcompile.passes.onnx.output_layer import OutputLayer


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 21])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = MatMul(h, w) y = Add(m, b)", ["LinearTopK"]),
        ("m = MatMul(h, w) n = Add(m, b) y = Sigmoid(n)", ["LinearTopK", "Sigmoid"]),
        ("m = MatMul(h, w) n = Add(m, b) y = Softmax<axis=1>(n)", ["LinearTopK", "Sub", "Exp"]),
        ("m = MatMul(h, w) y = LogSoftmax<axis=1>(m)", ["LinearTopK", "Sub"]),
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


@pytest.mark.parametrize("opset", [10, 17])
def test_several_huge_layers_hand_out_the_best_of_each(opset):
    m = model(
        "y = MatMul(h, w) n = MatMul(h, u) z = Sigmoid(n)",
        opset=opset,
        outputs=f"float[B, {N}] y, float[B, {N}] z",
        w=CONSTANTS["w"],
        u=weight(N, D, 5).T.copy(),
    )
    feeds = {"h": hidden(5, D)}
    full = run(m, **feeds)
    assert OutputLayer(min_outputs=1, top_k=2)(m).modified
    assert [v.name for v in m.graph.outputs] == ["y_scores", "y_ids", "z_scores", "z_ids"]
    assert operators(m) == ["LinearTopK", "LinearTopK", "Sigmoid"]
    for plugin in (False, True):
        answer = run(m, plugin, **feeds)
        for name in ("y", "z"):
            np.testing.assert_array_equal(
                answer[f"{name}_ids"], np.argsort(-full[name], axis=-1)[:, :2]
            )


def test_top_k_of_one_of_several_layers():
    m = model(
        "y = MatMul(h, w) z = MatMul(h, u)",
        outputs=f"float[B, {N}] y, float[B, {N}] z",
        w=CONSTANTS["w"],
        u=weight(N, D, 5).T.copy(),
    )
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
