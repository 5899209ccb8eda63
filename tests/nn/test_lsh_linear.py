"""LSHLinear: gradients, modes, shapes, types, tracing, export and bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcompile import LSH
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import LSHLinear

D, N = 13, 90
SMALL = LSH(tables=8, hashes=2, bucket=16, active=12, negatives=20, rehash=3, rehash_decay=0.2)


def dense_reference(module, hidden, target, scale):
    """Log-probabilities and gradients over all neurons in float64."""
    hidden = hidden.detach().double().requires_grad_()
    weight = module.weight.detach().double().requires_grad_()
    bias = None if module.bias is None else module.bias.detach().double().requires_grad_()
    log_prob = nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    mass = torch.zeros_like(log_prob)
    for row, labels in zip(mass, target, strict=True):
        distinct = {int(label) for label in labels if label >= 0}
        row[list(distinct)] = 1 / len(distinct)
    output = (mass * log_prob).sum(-1)
    (output * scale.double()).sum().backward()
    return output, hidden.grad, weight.grad, None if bias is None else bias.grad


@settings(max_examples=25, deadline=None)
@given(
    examples=st.integers(1, 40),
    depth=st.integers(1, 70),
    neurons=st.integers(2, 130),
    width=st.integers(1, 4),
    bias=st.booleans(),
    sparse=st.booleans(),
)
def test_everything_active_is_the_full_softmax(
    layer, examples, depth, neurons, width, bias, sparse
):
    module = layer(LSH(active=neurons), bias, depth, neurons)
    module.sparse_grad = sparse
    hidden = torch.randn(examples, depth, requires_grad=True)
    target = torch.randint(-1, neurons, (examples, width))
    target[:, -1] = target[:, -1].abs()
    scale = torch.rand(examples)
    output, loss = module(hidden, target)
    (output * scale).sum().backward()
    expected = dense_reference(module, hidden, target, scale)
    found = (output, hidden.grad, module.weight.grad, module.bias.grad if bias else None)
    for value, reference in zip(found, expected, strict=True):
        if reference is not None:
            assert torch.allclose(value.to_dense().double(), reference, atol=2e-5)
    assert module.weight.grad.is_sparse == sparse
    assert torch.allclose(loss, -output.mean())


def active_reference(module, hidden, target, core):
    """Log-probabilities over a known active set, by autograd in float64."""
    weight = module.weight.detach().double().requires_grad_()
    bias = module.bias.detach().double().requires_grad_()
    hidden = hidden.detach().double().requires_grad_()
    shared = torch.from_numpy(core.shared.astype(np.int64))
    outputs = []
    for e, own in enumerate(core.own):
        own = torch.from_numpy(own.astype(np.int64))
        foreign = ~torch.isin(shared, own)
        others, drawn = shared[foreign], torch.from_numpy(core.drawn)[foreign].double()
        chosen = torch.cat([own, others])
        correction = torch.zeros(len(chosen), dtype=torch.float64)
        if drawn.any():
            exact = len(chosen) - drawn.sum()
            correction[len(own) :] = drawn * torch.log((N - exact) / drawn.sum())
        scores = weight[chosen] @ hidden[e] + bias[chosen] + correction
        outputs.append(scores.log_softmax(0)[chosen == target[e]].sum())
    output = torch.stack(outputs)
    output.sum().backward()
    return output, hidden.grad, weight.grad, bias.grad


@pytest.mark.parametrize(("active", "negatives"), [(12, 20), (1, 30), (12, 0), (2, 1)])
def test_gradients_over_the_active_neurons(layer, batch, monkeypatch, active, negatives):
    from qcompile.nn import active_softmax

    module = layer(LSH(tables=8, hashes=2, active=active, negatives=negatives))
    hidden, target = batch()
    hidden.requires_grad_()
    made = []
    real = active_softmax._core.SparseSoftmax

    class Keeping:
        @staticmethod
        def SparseSoftmax(*args, **options):  # noqa: N802
            made.append(real(*args, **options))
            return made[-1]

    monkeypatch.setattr(active_softmax, "_core", Keeping)
    output, _ = module(hidden, target)
    output.sum().backward()
    expected = active_reference(module, hidden, target, made[0])
    found = output, hidden.grad, module.weight.grad, module.bias.grad
    for value, reference in zip(found, expected, strict=True):
        assert torch.allclose(value.to_dense().double(), reference, atol=1e-5)
    rows = set(module.weight.grad.coalesce().indices()[0].tolist())
    assert set(target.tolist()) <= rows
    assert len(rows) < N or active + negatives > N // 2


def test_backward_twice_and_accumulation(layer, batch):
    module = layer()
    hidden, target = batch()
    hidden.requires_grad_()
    _, loss = module(hidden, target)
    loss.backward(retain_graph=True)
    once = module.weight.grad.to_dense(), hidden.grad.clone()
    loss.backward()
    assert torch.allclose(module.weight.grad.to_dense(), 2 * once[0], atol=1e-7)
    assert torch.allclose(hidden.grad, 2 * once[1], atol=1e-7)


def test_evaluation_is_exact_and_agrees_with_log_prob_and_predict(layer, batch):
    module = layer().eval()
    hidden, target = batch()
    output, loss = module(hidden, target)
    expected = (hidden @ module.weight.T + module.bias).log_softmax(-1)
    assert torch.allclose(output, expected[range(11), target], atol=1e-6)
    assert torch.allclose(loss, nn.functional.nll_loss(expected, target))
    assert torch.allclose(module.log_prob(hidden), expected, atol=1e-6)
    assert torch.equal(module.predict(hidden), expected.argmax(-1))
    assert torch.equal(module(hidden), nn.functional.linear(hidden, module.weight, module.bias))
    labels = torch.stack([target, target, torch.full_like(target, -1)], dim=1)
    assert torch.allclose(module(hidden, labels).output, output)


@pytest.mark.parametrize("training", [True, False])
def test_leading_axes_and_label_shapes(layer, batch, training):
    module = layer(LSH(active=N)).train(training)
    hidden, target = batch(12)
    flat = module(hidden, target)
    several = torch.stack([target, torch.full_like(target, -1)], dim=1)
    assert torch.allclose(module(hidden, several).output, flat.output)
    deep = module(hidden.view(3, 4, D), target.view(3, 4))
    assert deep.output.shape == (3, 4)
    assert torch.allclose(deep.output.reshape(-1), flat.output)
    assert torch.allclose(deep.loss, flat.loss)
    assert module(hidden.view(3, 4, D), several.view(3, 4, 2)).output.shape == (3, 4)
    single = module(hidden[0], target[0])
    assert single.output.shape == ()
    assert torch.allclose(single.output, flat.output[0])
    assert torch.allclose(module(hidden[0], several[0]).output, flat.output[0])
    assert torch.allclose(module(hidden, target.int()).output, flat.output)


def test_other_floating_types_and_autocast_compute_in_float32(layer, batch):
    module = layer(LSH(active=N))
    hidden, target = batch()
    exact = module(hidden, target).loss
    half = hidden.bfloat16().requires_grad_()
    loss = module(half, target).loss
    loss.backward()
    assert half.grad.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    for training in (True, False):
        module.train(training)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(module(hidden, target).loss, exact, atol=1e-6)


def test_symbolic_trace_and_export_see_a_plain_linear(layer):
    module = layer().eval()
    model = nn.Sequential(nn.Linear(5, D), nn.ReLU(), module)
    hidden = torch.randn(4, 5)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(hidden), model(hidden))
    batch_axis = torch.export.Dim("batch")
    exported = torch.export.export(model, (hidden,), dynamic_shapes=({0: batch_axis},))
    calls = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    linear, relu = torch.ops.aten.linear.default, torch.ops.aten.relu.default
    assert calls == [linear, relu, linear]
    assert torch.allclose(exported.module()(hidden[:3]), model(hidden[:3]), atol=1e-6)


def test_onnx_export_gives_one_gemm(layer, tmp_path):
    model = nn.Sequential(layer()).eval()
    program = torch.onnx.export(model, (torch.randn(4, D),), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph] == ["Gemm"]
    assert any(v.shape == (N, D) for v in program.model.graph.initializers.values())


@pytest.mark.parametrize(
    ("hidden", "target", "message"),
    [
        ((3, D), [1, N, 2], r"target\[1\] is 90"),
        ((3, D), [1, -1, 2], r"target\[1\] is -1"),
        ((2, D), [[1, -1], [-2, 3]], r"target\[1, 0\] is -2"),
        ((2, D), [[1, -1], [-1, -1]], r"target\[1\] holds padding only"),
        ((2, 2, D), [[1, 2], [3, 1000]], r"target\[1, 1\] is 1000"),
        ((D,), -5, r"target is -5"),
        ((3, D), [1, 2], "shape"),
        ((3, D), [[[1]], [[2]], [[3]]], "shape"),
        ((3, D + 1), [1, 2, 3], "13 wide"),
        ((0, D), [], "empty batch"),
        ((3, D), [1.0, 2.0, 3.0], "float32"),
        ((3, D), [True, False, True], "bool"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_batches_are_refused(layer, hidden, target, message, training):
    module = layer().train(training)
    target = torch.tensor(target, dtype=torch.int64 if target == [] else None)
    with pytest.raises(DataError, match=message):
        module(torch.randn(hidden), target)


def test_other_bad_calls_are_refused(layer, batch):
    module = layer()
    hidden, target = batch()
    with pytest.raises(DataError, match="int64"):
        module(hidden.long(), target)
    with pytest.raises(DataError, match="expected an int64 tensor"):
        module(hidden, target.tolist())
    with pytest.raises(DataError, match="wide"):
        module(torch.tensor(1.0))
    with pytest.raises(DataError, match="wide"):
        module.predict(hidden[:, 1:])
    with pytest.raises(DataError, match="weight has dtype"):
        layer().double()(hidden.double(), target)
    with pytest.raises(DataError, match="runs on the CPU"):
        LSHLinear(D, N, device="meta")(hidden, target)
    with pytest.raises(DataError, match="schedule"):
        module.set_extra_state(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="schedule"):
        module.set_extra_state(torch.tensor([0, 0, -1, 0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hashes": 40}, "hashes"),
        ({"hashes": 0}, "hashes"),
        ({"tables": 5000}, "tables"),
        ({"tables": 2.5}, "tables must be an integer"),
        ({"active": True}, "active must be an integer"),
        ({"negatives": -1}, "negatives"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"rehash_decay": float("nan")}, "rehash_decay"),
        ({"family": "dwat"}, "dwta"),
        ({"policy": "lifo"}, "fifo"),
    ],
)
def test_bad_configurations_are_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        LSH(**wrong)
