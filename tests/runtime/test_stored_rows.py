"""Rows in bfloat16, or packed ones alone: exact for the rounded rows, with and without plugin."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import qcompile
from qcompile import ops
from qcompile.errors import DataError
from qcompile.passes.onnx.functions import function_for
from qcompile.passes.onnx.head import top_k_model
from qcompile.runtime import _core
from qcompile.runtime.index import build_cells, build_exact, build_lsh, store
from qcompile.runtime.reference import head
from qcompile.runtime.reference.index import Packed
from qcompile.runtime.reference.index import rows as packed_rows

ROUNDED = ("bf16", "none")


def make_layer(rows: int, depth: int, queries: int = 9, seed: int = 0):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, depth)).astype(np.float32)
    weight[rows // 2] = 0
    weight[-1] = weight[0]
    return (
        weight,
        rng.normal(size=rows).astype(np.float32),
        rng.normal(size=(queries, depth)).astype(np.float32),
    )


def stored(weight: np.ndarray, rescore: str, index=None):
    """Return what is kept of the rows, the index, and the rows that this stands for."""
    rows, index = store(weight, index or build_exact(weight), rescore)
    if rescore == "none":
        packed = Packed(*(index.arrays[name] for name in ("packed", "scale", "error")))
        return rows, index, packed_rows(packed, weight.shape[1])
    return rows, index, rows.astype(np.float32)


@pytest.mark.parametrize("rescore", ROUNDED)
@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (15, 3), (37, 8), (1000, 127), (5000, 24)])
def test_top_k_is_exact_for_the_rounded_rows(rows, depth, rescore):
    weight, bias, hidden = make_layer(rows, depth)
    kept, index, meant = stored(weight, rescore)
    if rescore == "bf16":
        kept = kept.view(np.uint16)
    layers = [
        _core.Head(kept, bias, *index.arrays.values(), rough) for rough in ("never", "always")
    ]
    for k in sorted({1, min(7, rows), rows}):
        scores, ids = head.linear_top_k(hidden, meant, bias, k)
        for isa in _core.supported_isas():
            for layer in layers:
                for some in (slice(0, 9), slice(2, 3), slice(4, 7)):
                    found = layer.top_k(hidden[some], k, isa, 2)
                    np.testing.assert_array_equal(found[1], ids[some], strict=True)
                    np.testing.assert_array_equal(found[0], scores[some], strict=True)


@pytest.mark.parametrize("rescore", ROUNDED)
def test_values_without_a_bound(rescore):
    weight, bias, hidden = make_layer(3000, 20)
    bias[[5, 70, 900]] = np.nan, np.inf, -np.inf
    hidden[1, 3], hidden[2, 0] = np.nan, np.inf
    kept, index, meant = stored(weight, rescore)
    if rescore == "bf16":
        kept = kept.view(np.uint16)
    layer = _core.Head(kept, bias, *index.arrays.values(), "always")
    expected = head.linear_top_k(hidden[3:], meant, bias, 6)
    for isa in _core.supported_isas():
        scores, ids = layer.top_k(hidden, 6, isa, 1)
        np.testing.assert_array_equal(ids[3:], expected[1])
        np.testing.assert_array_equal(scores[3:], expected[0])
        assert np.isnan(scores[1]).all()


def test_sizes_are_what_the_table_says():
    weight, _, _ = make_layer(4096, 128)
    for rescore, bytes_a_value in (("fp32", 5), ("bf16", 2.5), ("none", 1)):
        rows, index = store(weight, build_exact(weight), rescore)
        packed = index.arrays["packed"]
        assert rows.nbytes + packed.nbytes == bytes_a_value * weight.size


@pytest.fixture
def saved(tmp_path):
    def save(kept, bias, index, k=5, **options):
        path = str(tmp_path / "stored.onnx")
        ir.save(top_k_model(kept, bias, k, index, **options), path)
        return path

    return save


def plugin_session(path: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, qcompile.session_options())


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("rescore", ROUNDED)
@pytest.mark.parametrize(("rows", "depth"), [(37, 10), (1003, 30), (64, 5)])
def test_the_body_computes_with_the_rounded_rows(saved, rows, depth, rescore, opset):
    weight, bias, hidden = make_layer(rows, depth, queries=7)
    kept, index, meant = stored(weight, rescore)
    path = saved(kept, bias, index, opset=opset)
    onnx.checker.check_model(path, full_check=True)
    expected = head.linear_top_k(hidden, meant, bias, 5)
    body = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for session in (body, plugin_session(path)):
        scores, ids = session.run(None, {"hidden": hidden})
        np.testing.assert_array_equal(ids, expected[1])
        np.testing.assert_allclose(scores, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rescore", ROUNDED)
@pytest.mark.parametrize("batch", [1, 3, 20])
def test_large_layers(saved, rescore, batch):
    weight, bias, hidden = make_layer(70_003, 128, queries=batch)
    kept, index, meant = stored(weight, rescore)
    scores, ids = plugin_session(saved(kept, bias, index, k=9)).run(None, {"hidden": hidden})
    exact = hidden.astype(np.float64) @ meant.T.astype(np.float64) + bias
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, expected, 1), rtol=1e-5)


@pytest.mark.parametrize("rescore", ROUNDED)
def test_hash_tables_over_rounded_rows(saved, rescore):
    weight, bias, hidden = make_layer(1500, 30, queries=40)
    built = build_lsh(weight, family="dwta", tables=8, hashes=2, bucket=64)
    built = built.with_attributes(probes=64, rescore=1500)
    kept, index, meant = stored(weight, rescore, built)
    scores, ids = plugin_session(saved(kept, bias, index)).run(None, {"hidden": hidden})
    # So many probes find nearly all rows; what is found is scored by the rounded ones.
    right = head.linear(hidden, meant, bias)
    np.testing.assert_array_equal(scores, np.take_along_axis(right, ids, 1))
    assert (ids[:, 0] == right.argmax(axis=1)).mean() > 0.8


def test_cells_over_rows_in_bfloat16(saved):
    weight, bias, hidden = make_layer(2000, 30, queries=40)
    kept, index, meant = stored(weight, "bf16", build_cells(weight, bias, cells=20))
    index = index.with_attributes(probes=20, rescore=100)
    scores, ids = plugin_session(saved(kept, bias, index)).run(None, {"hidden": hidden})
    expected = head.linear_top_k(hidden, meant, bias, 5)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(scores, expected[0])


def test_refuses_what_cannot_be_stored():
    weight, bias, _ = make_layer(300, 8)
    exact = build_exact(weight)
    with pytest.raises(DataError, match=r"fp16.*expected one of fp32, bf16, none"):
        store(weight, exact, "fp16")
    with pytest.raises(DataError, match="no rows to search in cells"):
        store(weight, build_cells(weight, bias, cells=5), "none")
    weight[3, 2] = np.finfo(np.float32).max
    with pytest.raises(DataError, match="beyond the largest number of bfloat16"):
        store(weight, exact, "bf16")
    with pytest.raises(ValueError, match="'none' needs opset 13"):
        function_for(ops.LINEAR_TOP_K, 12, rescore="none")


HOSTILE = {
    "weight": [
        ("none", lambda a: np.empty((0, 20), np.float32)),
        ("none", lambda a: np.empty((0, 0), np.float32)),
        ("none", lambda a: np.empty((0,), np.float32)),
        ("none", lambda a: np.ones((7, 30), np.float32)),
        ("none", lambda a: np.empty((0, 30), np.float16)),
        ("bf16", lambda a: a[:-1]),
        ("bf16", lambda a: a[:, :20]),
        ("bf16", lambda a: a.view(np.uint16)),
        ("bf16", lambda a: a[:0]),
    ],
    "bias": [
        ("none", lambda a: a[:-1]),
        ("none", lambda a: a[:0]),
        ("bf16", lambda a: a[:-1]),
        ("bf16", lambda a: a[None]),
    ],
    "packed": [
        ("none", lambda a: a[:1]),
        ("none", lambda a: a[:, 1:]),
        ("none", lambda a: a.view(np.int8)),
        ("bf16", lambda a: a[0]),
        ("bf16", lambda a: np.concatenate([a, a, a])),
        ("bf16", lambda a: a[:, :, :-1]),
    ],
    "scale": [("none", lambda a: -a), ("bf16", lambda a: a * np.nan)],
    "error": [("none", lambda a: a - 1), ("bf16", lambda a: a + np.inf)],
}


@pytest.mark.parametrize(
    ("name", "rescore", "change"),
    [(name, *case) for name, cases in HOSTILE.items() for case in cases],
)
def test_files_that_do_not_fit_together_are_refused(saved, name, rescore, change):
    weight, bias, _ = make_layer(1003, 30)
    kept, index, _ = stored(weight, rescore)
    arrays = {"weight": kept, "bias": bias, **index.arrays}
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    changed = index.__class__(index.mode, {n: arrays[n] for n in index.arrays})
    path = saved(np.zeros((4, 30), np.float32), bias, index)
    model = ir.load(path)
    for place, array in enumerate((arrays["weight"], arrays["bias"], *changed.arrays.values()), 1):
        value = model.graph.node(0).inputs[place]
        value.const_value = ir.tensor(array, name=value.name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
    ir.save(model, path)
    with pytest.raises(Exception, match=r"LinearTopK 'head': .*(expected|bias)|[Tt]ype"):
        plugin_session(path)


def test_rounding_is_to_the_nearest():
    weight = np.array([[1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-8 + 2**-16, -1.0]], np.float32)
    rows, _ = store(weight, build_exact(weight), "bf16")
    assert rows.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(rows.astype(np.float32), [[1, 1 + 2**-7, 1 + 2**-7, -1]])
