"""Without the plugin onnxruntime runs the function bodies: they must be the operators."""

import numpy as np
import onnx
import onnxruntime
import pytest

from qcompile import ops
from qcompile.passes.onnx.functions import function_for
from qcompile.runtime.reference import head


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 18, 21])
@pytest.mark.parametrize("operator", ops.OPERATORS, ids=lambda operator: operator.name)
def test_body_computes_the_operator(head_model, operator, opset):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(37, 10)).astype(np.float32)
    bias = rng.normal(size=37).astype(np.float32)
    hidden = rng.normal(size=(2, 3, 10)).astype(np.float32)
    path = head_model(operator, weight, bias, shape=("batch", "time", 10), k=5, opset=opset)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"hidden": hidden})
    if operator is ops.LINEAR_TOP_K:
        scores, ids = head.linear_top_k(hidden, weight, bias, 5)
        np.testing.assert_array_equal(found[1], ids)
        np.testing.assert_allclose(found[0], scores, rtol=1e-5, atol=1e-5)
        assert len(found) == 2
    elif operator is ops.LINEAR_SOFTMAX:
        expected = head.linear_softmax(hidden, weight, bias)
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-7)
    else:
        expected = head.linear(hidden, weight, bias)
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
def test_body_with_the_partition_function(head_model, opset):
    rng = np.random.default_rng(0)
    weight = 20 * rng.normal(size=(37, 10)).astype(np.float32)  # exp of its scores would overflow
    bias = rng.normal(size=37).astype(np.float32)
    hidden = rng.normal(size=(2, 3, 10)).astype(np.float32)
    path = head_model(
        ops.LINEAR_TOP_K, weight, bias, shape=("a", "b", 10), k=5, opset=opset, log_sum=True
    )
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores, ids, log_sum = session.run(None, {"hidden": hidden})
    np.testing.assert_array_equal(ids, head.linear_top_k(hidden, weight, bias, 5)[1])
    np.testing.assert_allclose(log_sum, head.log_sum(hidden, weight, bias), rtol=1e-5)
    assert np.exp(scores - log_sum).sum(-1).max() < 1 + 1e-4


def test_every_operator_has_a_body_with_its_signature():
    for operator in ops.OPERATORS:
        function = function_for(operator)
        assert tuple(value.name for value in function.inputs) == operator.inputs
        assert len(function.outputs) == len(operator.required_outputs)
        assert {name: attr.value for name, attr in function.attributes.items()} == dict(
            operator.attributes
        )


def test_refuses_an_opset_without_the_operators_it_needs():
    with pytest.raises(ValueError, match="opset 9"):
        function_for(ops.LINEAR, opset=8)
    with pytest.raises(ValueError, match="attribute k"):
        function_for(ops.LINEAR_TOP_K, opset=11)
