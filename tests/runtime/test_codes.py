"""Cells whose rows are short codes: the kernels against NumPy, what is coded, and its files."""

import itertools

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcompile
from qcompile.errors import DataError
from qcompile.passes.onnx.head import top_k_model
from qcompile.runtime import _core
from qcompile.runtime.index import build_cells, build_exact, code_cells, store
from qcompile.runtime.reference import head
from qcompile.runtime.reference.cells import cells_log_sum, cells_top_k
from qcompile.runtime.reference.codes import code, decode
from qcompile.runtime.reference.index import unpack

ISAS = _core.supported_isas()
BITS = (2, 4)


def make_layer(rows: int, depth: int, queries: int = 6, seed: int = 0):
    """Rows in clumps, as those of trained layers are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, rows // 20), depth))
    weight = centres[rng.integers(len(centres), size=rows)] + 0.5 * rng.normal(size=(rows, depth))
    bias = rng.normal(size=rows)
    hidden = rng.normal(size=(queries, depth))
    return tuple(array.astype(np.float32) for array in (weight, bias, hidden))


def coded(weight, bias, bits, **options):
    return code_cells(weight, build_cells(weight, bias, **options), bits)


def load(weight, bias, index):
    return _core.Cells(weight, bias, *index.arrays.values(), bits=index.attributes["bits"])


def assert_as_reference(weight, bias, hidden, index, k, **search):
    bits = index.attributes["bits"]
    expected = cells_top_k(hidden, weight, bias, index.arrays, k, bits=bits, **search)
    layer = load(weight, bias, index)
    for isa, threads in itertools.product(ISAS, (1, 2)):
        found = layer.top_k(hidden, k, isa=isa, threads=threads, **search)
        np.testing.assert_array_equal(found[1], expected[1], strict=True)
        np.testing.assert_array_equal(found[0], expected[0], strict=True)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (37, 5), (1000, 127), (2065, 64)])
def test_search_equals_the_reference(rows, depth, bits):
    weight, bias, hidden = make_layer(rows, depth, queries=21)
    bias[::11] = -np.inf
    index = coded(weight, bias, bits)
    k = min(rows, 7)
    for probes in (1, 4, 1000):
        search = {"probes": probes, "rescore": 20}
        assert_as_reference(weight, bias, hidden, index, k, **search)
        assert_as_reference(weight, bias, hidden, index, 1, spread=1.5, guard=2.0, **search)
        assert_as_reference(weight, bias, hidden, index, 1, groups=3, spread=1.0, **search)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from(BITS),
    st.sampled_from([0.0, 0.0, 1.0, 4.0]),
    st.booleans(),
)
def test_search_equals_the_reference_whatever_the_layer(
    rows, depth, probes, seed, bits, guard, coarse
):
    weight, bias, hidden = make_layer(rows, depth, queries=3, seed=seed)
    if coarse:  # many exact ties
        weight, bias, hidden = np.rint(weight), np.rint(bias), np.rint(hidden)
    rng = np.random.default_rng(seed)
    index = coded(weight, bias, bits, cells=int(rng.integers(1, rows + 1)), seed=seed)
    k = int(rng.integers(1, rows + 1))
    assert_as_reference(weight, bias, hidden, index, k, probes=probes, guard=guard)


@pytest.mark.parametrize("bits", BITS)
def test_what_is_coded(bits):
    weight, bias, _ = make_layer(3001, 30)
    plain = build_cells(weight, bias, cells=200)
    arrays = code_cells(weight, plain, bits, threads=1).arrays
    for name, array in code_cells(weight, plain, bits, threads=3).arrays.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    ids, cells = arrays["row_ids"], len(arrays["cell_bias"])
    places = np.flatnonzero(ids >= 0)
    blocks = np.diff(arrays["offsets"].astype(int))
    of = np.repeat(np.arange(cells), 16 * blocks)[places]
    centroids = unpack(arrays["centroids"], cells, 30)[of]
    apart = weight[ids[places]] - centroids * arrays["centroid_scale"][of, None].astype(np.float64)
    wanted = code(apart, bits)
    levels = decode(arrays["packed"], len(ids), 30, bits)[places]
    scale = arrays["scale"][places].astype(np.float64)
    assert (levels != wanted.levels).mean() < 1e-3  # float32 against float64
    np.testing.assert_allclose(scale, wanted.scale, rtol=0.02)
    left = np.linalg.norm(apart - scale[:, None] * levels, axis=1)
    assert (left <= arrays["error"][places]).all()
    np.testing.assert_allclose(arrays["error"][places], left, rtol=1e-6)
    # The least squares of a uniform quantiser leave .345 and .107 of a normal distribution's
    # deviation; what keeps the product with the row leaves a little more.
    assert left.mean() < {2: 0.37, 4: 0.12}[bits] * np.linalg.norm(apart, axis=1).mean()
    products = (apart * levels).sum(axis=1) * scale
    np.testing.assert_allclose(products, np.square(apart).sum(axis=1), rtol=1e-5, atol=1e-9)
    assert (
        not arrays["packed"]
        .reshape(-1, arrays["packed"].shape[1], 16, 4)
        .transpose(0, 2, 1, 3)
        .reshape(len(ids), -1)[ids < 0]
        .any()
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("make", [np.ones, np.zeros], ids=["equal", "zero"])
def test_rows_that_are_all_the_same(make, bits):
    weight = make((500, 5), np.float32)
    bias = np.arange(500, dtype=np.float32) // 4
    index = coded(weight, bias, bits)
    hidden = np.array([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [np.nan, 0, 0, 0, 0]], np.float32)
    assert_as_reference(weight, bias, hidden[:2], index, 6, probes=2)
    found = load(weight, bias, index).top_k(hidden, 6, probes=100, groups=100, rescore=100)
    np.testing.assert_array_equal(found[1], head.linear_top_k(hidden, weight, bias, 6)[1])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("guard", [0.0, 2.0])
def test_the_partition_function_equals_the_reference(guard, bits):
    weight, bias, hidden = make_layer(1000, 33, queries=9)
    bias[::7] = -np.inf
    hidden *= np.float32(0.3)
    index = coded(weight, bias, bits)
    layer = load(weight, bias, index)
    for probes in (1, 4, 1000):
        search = {"probes": probes, "rescore": 20, "spread": 0.5, "guard": guard}
        wanted = cells_log_sum(hidden, weight, bias, index.arrays, 7, bits=bits, **search)
        for isa in ISAS:
            found = layer.top_k(hidden, 7, log_sum=True, isa=isa, **search)
            np.testing.assert_allclose(found[2], wanted, rtol=0, atol=1e-5)
    scores = hidden.astype(np.float64) @ weight.T + bias
    exact = np.log(np.exp(scores).sum(axis=1))
    assert np.abs(found[2][:, 0] - exact).max() < {2: 0.2, 4: 0.03}[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", [0.02, 50])
def test_a_guard_keeps_recall_on_shifted_inputs(scale, bits):
    weight, bias, hidden = make_layer(8000, 24, queries=200)
    bias *= 3
    hidden *= np.float32(scale)
    layer = load(weight, bias, coded(weight, bias, bits))
    expected = head.linear_top_k(hidden, weight, bias, 1)[1]
    recall = [
        (layer.top_k(hidden, 1, probes=8, guard=guard)[1] == expected).mean()
        for guard in (0.0, 3.0)
    ]
    assert recall[1] >= 0.95, recall
    assert recall[1] > recall[0]


def test_what_cannot_be_coded_is_refused():
    weight, bias, _ = make_layer(100, 8)
    index = build_cells(weight, bias)
    with pytest.raises(DataError, match="bits is 3, expected 2 or 4"):
        code_cells(weight, index, 3)
    with pytest.raises(DataError, match="an index of build_cells"):
        code_cells(weight, code_cells(weight, index, 2), 4)
    with pytest.raises(DataError, match="an index of build_cells"):
        code_cells(weight, build_exact(weight), 2)
    with pytest.raises(DataError, match="row_ids"):
        code_cells(weight[:50].copy(), index, 2)
    with pytest.raises(DataError, match="packed"):
        _core.Cells(weight, bias, *index.arrays.values(), bits=4)
    for broken in (np.zeros_like, lambda a: a + 1):
        index.arrays["offsets"] = broken(index.arrays["offsets"])
        with pytest.raises(DataError, match="offsets: expected to rise"):
            code_cells(weight, index, 2)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rescore", ["fp32", "bf16"])
def test_the_file_runs_with_and_without_the_plugin(tmp_path, bits, rescore):
    weight, bias, hidden = make_layer(3000, 30, queries=70)
    index = coded(weight, bias, bits).with_attributes(probes=9, rescore=60, spread=0.5, guard=0.1)
    rows, index = store(weight, index, rescore)
    path = str(tmp_path / "cells.onnx")
    ir.save(top_k_model(rows, bias, 5, index), path)
    session = onnxruntime.InferenceSession(path, qcompile.session_options())
    scores, ids = session.run(None, {"hidden": hidden})
    kept = rows.astype(np.float32)
    expected = cells_top_k(hidden, kept, bias, index.arrays, 5, **index.attributes)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
    body = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    exact = head.linear_top_k(hidden, kept, bias, 5)
    np.testing.assert_array_equal(body.run(None, {"hidden": hidden})[1], exact[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "attribute bits is 3, expected 2, 4 or 8"),
        ({"bits": 8}, "input 'packed': expected int8"),
        ({"bits": 4}, "input 'packed': expected uint8"),
        ({"packed": lambda a: a.view(np.int8)}, "input 'packed': expected uint8"),
        ({"packed": lambda a: a[:-1]}, "input 'scale': expected"),
        ({"scale": lambda a: a * np.float32(np.nan)}, "'scale'.*expected a finite value"),
        ({"error": lambda a: a - np.float32(np.inf)}, "'error'.*expected a finite value"),
        ({"row_ids": lambda a: a + np.int32(1)}, "'row_ids'.*expected"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    weight, bias, _ = make_layer(500, 30)
    index = coded(weight, bias, 2)
    for name, value in change.items():
        if callable(value):
            index.arrays[name] = value(index.arrays[name])
        else:
            index = index.with_attributes(**{name: value})
    path = str(tmp_path / "cells.onnx")
    ir.save(top_k_model(weight, bias, 5, index), path)
    with pytest.raises(Exception, match=rf"LinearTopK 'head': .*{message}"):
        onnxruntime.InferenceSession(path, qcompile.session_options())
