"""onnxruntime with the plugin: the same answers as without, under threads, forks and bad files."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import qcompile
from qcompile import ops
from qcompile.runtime.reference import head

CPU = ["CPUExecutionProvider"]


def make_session(path: str, **settings: object) -> onnxruntime.InferenceSession:
    options = qcompile.session_options()
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(path, options, providers=CPU)


@pytest.fixture
def layer():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1003, 30)).astype(np.float32)
    return weight, rng.normal(size=1003).astype(np.float32)


@pytest.mark.parametrize("shape", [(30,), (1, 30), (4, 30), (2, 3, 30), (0, 30), (2, 0, 30)])
@pytest.mark.parametrize("operator", ops.OPERATORS, ids=lambda operator: operator.name)
def test_kernel_equals_function_body(head_model, layer, operator, shape):
    names = tuple(f"axis{i}" for i in range(len(shape) - 1))
    path = head_model(operator, *layer, shape=(*names, 30), k=5)
    hidden = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    bodies = onnxruntime.InferenceSession(path, providers=CPU).run(None, {"hidden": hidden})
    kernels = make_session(path).run(None, {"hidden": hidden})
    for body, kernel in zip(bodies, kernels, strict=True):
        assert body.dtype == kernel.dtype and body.shape == kernel.shape
        np.testing.assert_allclose(kernel, body, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("operator", ops.OPERATORS, ids=lambda operator: operator.name)
def test_registered_kernel_is_what_runs(head_model, layer, operator, tmp_path):
    path = head_model(operator, *layer)
    session = make_session(
        path, enable_profiling=True, profile_file_prefix=str(tmp_path / "profile")
    )
    session.run(None, {"hidden": np.ones((2, 30), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    names = {event.get("args", {}).get("op_name") for event in events}
    assert operator.name in names and "MatMul" not in names


def test_shapes_are_inferred_without_being_declared(head_model, layer):
    # The node alone, with no function body and no declared output shape.
    for operator, last in ((ops.LINEAR_TOP_K, 7), (ops.LINEAR_SOFTMAX, 1003), (ops.LINEAR, 1003)):
        path = head_model(operator, *layer, k=7, function=False, declare=False)
        for output in make_session(path).get_outputs():
            assert output.shape == ["batch", last]


def test_registering_twice_is_harmless(head_model, layer):
    options = qcompile.session_options()
    qcompile.register(options)
    assert qcompile.session_options(options) is options
    path = head_model(ops.LINEAR, *layer, function=False)
    assert onnxruntime.InferenceSession(path, options, providers=CPU).get_outputs()


def test_sessions_and_threads_share_the_library(head_model, layer):
    path = head_model(ops.LINEAR_TOP_K, *layer, k=4)
    sessions = [make_session(path), make_session(path, intra_op_num_threads=1)]
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(8, 70, 30)).astype(np.float32)
    expected = [head.linear_top_k(part, *layer, 4)[1] for part in hidden]
    wrong = []

    def work(index: int) -> None:
        for _ in range(20):
            found = sessions[index % 2].run(["ids"], {"hidden": hidden[index]})[0]
            if not np.array_equal(found, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("operator", [ops.LINEAR_TOP_K, ops.LINEAR_SOFTMAX], ids=lambda o: o.name)
def test_answers_do_not_depend_on_the_number_of_threads(head_model, operator):
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(9000, 64)).astype(np.float32)
    path = head_model(operator, weight, rng.normal(size=9000).astype(np.float32), k=7)
    hidden = 3 * rng.normal(size=(33, 64)).astype(np.float32)
    results = [
        make_session(path, intra_op_num_threads=threads).run(None, {"hidden": hidden})
        for threads in (1, 2, 3, 5)
    ]
    for found in results[1:]:
        for mine, first in zip(found, results[0], strict=True):
            # Each is within 1e-5 of the truth, so they are within twice that of each other.
            np.testing.assert_allclose(mine, first, rtol=2e-5, atol=1e-7)
    if operator is ops.LINEAR_TOP_K:
        assert all(np.array_equal(found[1], results[0][1]) for found in results)


@pytest.mark.parametrize("batch", [1, 3, 4, 20])
def test_large_layers_are_scanned_exactly(head_model, batch):
    # 5 MB of int8 rows: few queries are answered from half of their bits.
    rng = np.random.default_rng(6)
    weight = rng.normal(size=(40_003, 128)).astype(np.float32)
    weight[30_000:30_005] = weight[17]  # equal scores: the lowest ids win
    weight[40_001] *= 50
    bias = rng.normal(size=40_003).astype(np.float32)
    bias[30_000:30_005] = bias[17]
    hidden = rng.normal(size=(batch, 128)).astype(np.float32)
    hidden[0] = weight[17]
    path = head_model(ops.LINEAR_TOP_K, weight, bias, k=9)
    scores, ids = make_session(path).run(["scores", "ids"], {"hidden": hidden})
    exact = hidden.astype(np.float64) @ weight.T.astype(np.float64) + bias
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, expected, 1), rtol=1e-5)


def _serve(path: str, hidden: np.ndarray) -> np.ndarray:
    return make_session(path).run(["probabilities"], {"hidden": hidden})[0]


_FORK = """
import multiprocessing, sys
import numpy as np
import torch
torch.set_num_threads(2)
torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # starts torch's threads in the parent
import onnxruntime, qcompile
path = sys.argv[1]
rng = np.random.default_rng(0)
hidden = rng.normal(size=(64, 64)).astype(np.float32)

def serve(queue=None):
    options = qcompile.session_options()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"hidden": hidden})[0]
    if queue is not None:
        queue.put(found)
    return found

expected = serve()
context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=serve, args=(queue,))
child.start()
assert np.array_equal(queue.get(timeout=60), expected)
child.join(60)
assert child.exitcode == 0
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openmp", "serial"])
def test_forked_children_do_not_hang(head_model, backend):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6000, 64)).astype(np.float32)
    path = head_model(ops.LINEAR_SOFTMAX, weight, np.zeros(6000, np.float32))
    environment = {**os.environ, "QCOMPILE_PARALLEL": backend}
    command = [sys.executable, "-c", _FORK, path]
    subprocess.run(command, env=environment, check=True, timeout=180)


def test_spawned_children_serve(head_model, layer):
    path = head_model(ops.LINEAR_SOFTMAX, *layer)
    hidden = np.ones((2, 30), np.float32)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_serve, (path, hidden))
    np.testing.assert_array_equal(found, _serve(path, hidden))


def test_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv("QCOMPILE_PARALLEL", "fibers")
    with pytest.raises(
        qcompile.PluginError, match=r"fibers.*expected onnxruntime, openmp or serial"
    ):
        qcompile.session_options()


HOSTILE = {
    "weight": [np.ones((1003, 31)), np.ones(30), np.ones((1, 1003, 30)), np.ones((0, 20))],
    "bias": [np.ones(1002), np.ones((1003, 1)), np.ones(())],
    "packed": [
        np.ones((2, 63, 4, 16, 3), np.uint8),
        np.ones((2, 62, 4, 16, 4), np.uint8),
        np.ones((2, 63, 3, 16, 4), np.uint8),
        np.ones((3, 63, 4, 16, 4), np.uint8),
        np.ones((0, 63, 4, 16, 4), np.uint8),
        np.ones((63, 8, 16, 4), np.uint8),
        np.ones((0,), np.uint8),
    ],
    "scale": [np.ones(1002), np.ones((1003, 2)), np.full(1003, np.nan), -np.ones(1003)],
    "error": [np.ones(1004), np.ones((1, 1003)), np.full(1003, np.inf), -np.ones(1003)],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HOSTILE.items() for value in values]
)
@pytest.mark.parametrize("operator", [ops.LINEAR_TOP_K, ops.LINEAR_SOFTMAX], ids=lambda o: o.name)
def test_inputs_that_do_not_fit_are_refused(head_model, layer, operator, name, value):
    if value.dtype != np.uint8:
        value = value.astype(np.float32)
    path = head_model(operator, *layer, replace={name: value})
    with pytest.raises(Exception, match=rf"{operator.name} 'head': .*(expected|bias)"):
        make_session(path).run(None, {"hidden": np.ones((2, 30), np.float32)})


def test_probabilities_need_their_rows(head_model, layer):
    path = head_model(ops.LINEAR_SOFTMAX, *layer, replace={"weight": np.empty((0, 30), np.float32)})
    with pytest.raises(Exception, match=r"'weight': expected a non-empty float32 matrix"):
        make_session(path)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.float32])
def test_packed_rows_of_another_type_are_refused(head_model, layer, dtype):
    path = head_model(
        ops.LINEAR_TOP_K, *layer, replace={"packed": np.ones((2, 63, 4, 16, 4), dtype)}
    )
    with pytest.raises(Exception, match=r"packed|Type"):
        make_session(path)


@pytest.mark.parametrize("k", [0, -3, 1004, 2**40])
def test_impossible_k_is_refused(head_model, layer, k):
    path = head_model(ops.LINEAR_TOP_K, *layer, k=k, shape=("batch", 30))
    with pytest.raises(Exception, match=rf"LinearTopK 'head': attribute k is {k}, expected"):
        make_session(path).run(None, {"hidden": np.ones((2, 30), np.float32)})


@pytest.mark.parametrize("operator", ops.OPERATORS, ids=lambda operator: operator.name)
def test_hidden_of_another_width_is_refused(head_model, layer, operator):
    path = head_model(operator, *layer, shape=("batch", "width"))
    session = make_session(path)
    with pytest.raises(Exception, match=r"expected float32 \[..., 30\], found float32 \[2, 29\]"):
        session.run(None, {"hidden": np.ones((2, 29), np.float32)})


def test_weights_that_are_not_constant_are_served_densely(head_model, layer):
    path = head_model(ops.LINEAR_TOP_K, *layer, k=3, variable={"weight": ("N", 30), "bias": ("M",)})
    weight, bias = layer
    hidden = np.random.default_rng(3).normal(size=(5, 30)).astype(np.float32)
    feeds = {"hidden": hidden, "weight": -weight, "bias": bias}
    scores, ids = make_session(path).run(None, feeds)
    expected = head.linear_top_k(hidden, -weight, bias, 3)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
    with pytest.raises(Exception, match=r"bias.*expected float32 \[1003\]"):
        make_session(path).run(None, {**feeds, "bias": bias[1:]})
