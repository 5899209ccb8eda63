"""Search in hash tables: the kernels against NumPy, and files from strangers."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcompile
from qcompile.errors import DataError
from qcompile.passes.onnx.head import top_k_model
from qcompile.runtime import _core
from qcompile.runtime.index import build_lsh
from qcompile.runtime.reference import head
from qcompile.runtime.reference.hashed_rows import hashed_top_k

ISAS = _core.supported_isas()
FAMILIES = ["simhash", "wta", "dwta", "doph"]
TABLES = {"family": "dwta", "tables": 8, "hashes": 2, "bucket": 40}


def make_layer(rows: int, depth: int, queries: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = ((rows, depth), (rows,), (queries, depth))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def load(weight, bias, index):
    settings = {name: index.attributes[name] for name in ("family", "tables", "hashes")}
    seed = index.attributes["seed"] % 2**64
    return _core.Hashed(weight, bias, *index.arrays.values(), **settings, seed=seed)


def expected_of(weight, bias, hidden, index, k, **search):
    known = {**index.attributes, **search}
    return hashed_top_k(hidden, weight, bias, index.arrays, k, **known)


def assert_as_reference(weight, bias, hidden, index, k, **search):
    expected = expected_of(weight, bias, hidden, index, k, **search)
    layer = load(weight, bias, index)
    for isa in ISAS:
        for threads in (1, 2):
            found = layer.top_k(hidden, k, isa=isa, threads=threads, **search)
            np.testing.assert_array_equal(found[1], expected[1], strict=True)
            np.testing.assert_array_equal(found[0], expected[0], strict=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (37, 3), (601, 30)])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_search_equals_the_reference(family, rows, depth, nonnegative):
    weight, bias, hidden = make_layer(rows, depth, queries=19)
    if nonnegative:
        hidden = np.maximum(hidden, 0)
    index = build_lsh(weight, family=family, tables=5, hashes=3, bucket=20)
    for probes in (1, 2, 7):
        search = {"probes": probes, "rescore": 20}
        assert_as_reference(weight, bias, hidden, index, min(rows, 4), **search)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(FAMILIES),
    st.integers(1, 200),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 2**64 - 1),
    st.booleans(),
)
def test_search_equals_the_reference_whatever_the_tables(
    family, rows, depth, hashes, probes, seed, coarse
):
    weight, bias, hidden = make_layer(rows, depth, queries=3, seed=seed % 2**32)
    if coarse:  # ties, zeros, and bins of zeros
        hidden = np.rint(hidden / 2)
    index = build_lsh(weight, family=family, tables=3, hashes=hashes, bucket=9, seed=seed)
    k = 1 + seed % rows
    assert_as_reference(weight, bias, hidden, index, k, probes=probes, rescore=5)


def test_a_renewed_draw_searches_with_its_own_functions():
    weight, bias, hidden = make_layer(300, 20)
    index = build_lsh(weight, **TABLES, draw=2)
    assert index.attributes["seed"] != build_lsh(weight, **TABLES).attributes["seed"]
    assert_as_reference(weight, bias, hidden, index, 5, probes=2, rescore=40)
    # A row as the query lands in its own bucket of every table.
    found = load(weight, np.zeros_like(bias), index).top_k(weight[:50].copy(), 1, rescore=40)
    assert (found[1][:, 0] == np.arange(50)).mean() > 0.9


def test_more_probes_find_more():
    weight, bias, hidden = make_layer(5000, 32, queries=200)
    exact = head.linear_top_k(hidden, weight, bias, 1)[1]
    for family, hashes in (("simhash", 5), ("dwta", 2)):
        index = build_lsh(weight, family=family, tables=2, hashes=hashes, bucket=5000)
        layer = load(weight, bias, index)
        recall = [
            (layer.top_k(hidden, 1, probes=probes, rescore=5000)[1] == exact).mean()
            for probes in (1, 3, 4)
        ]
        assert recall[0] < recall[1] < recall[2], (family, recall)


def test_what_no_table_finds_is_looked_for_among_all():
    weight, bias, hidden = make_layer(900, 20)
    hidden[1, 3], hidden[2, 0], hidden[3] = np.nan, np.inf, 0
    index = build_lsh(weight, family="wta", tables=2, hashes=4, bucket=3)
    with np.errstate(invalid="ignore"):
        assert_as_reference(weight, bias, hidden, index, 700, rescore=5)
        expected = head.linear_top_k(hidden, weight, bias, 700)
    np.testing.assert_array_equal(load(weight, bias, index).top_k(hidden, 700)[1], expected[1])


def test_building_refuses_what_it_cannot_use():
    weight, _, _ = make_layer(100, 8)
    with pytest.raises(DataError, match="tables must be in"):
        build_lsh(weight, **{**TABLES, "tables": 0})
    with pytest.raises(DataError, match="unknown hash family"):
        build_lsh(weight, **{**TABLES, "family": "minhash"})
    weight[7, 3] = np.nan
    with pytest.raises(DataError, match="row 7"):
        build_lsh(weight, **TABLES)


@pytest.fixture
def saved(tmp_path):
    def save(weight, bias, index, k=5, **options):
        path = str(tmp_path / "hashed.onnx")
        ir.save(top_k_model(weight, bias, k, index, **options), path)
        return path

    return save


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_runs_with_and_without_the_plugin(saved, family):
    weight, bias, hidden = make_layer(1500, 30, queries=40)
    index = build_lsh(weight, **{**TABLES, "family": family}, seed=2**64 - 5)
    index = index.with_attributes(probes=3, rescore=40)
    path = saved(weight, bias, index)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, qcompile.session_options())
    scores, ids = session.run(None, {"hidden": hidden})
    expected = expected_of(weight, bias, hidden, index, 5)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
    body = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    exact = head.linear_top_k(hidden, weight, bias, 5)
    np.testing.assert_array_equal(body.run(None, {"hidden": hidden})[1], exact[1])
    empty = session.run(None, {"hidden": hidden[:0]})
    assert empty[0].shape == empty[1].shape == (0, 5)


HOSTILE = {
    "packed": lambda a: a[:, :-1],
    "offsets": lambda a: a[::-1],
    "row_ids": lambda a: np.where(np.arange(len(a)) < 3, 0, a),
    "scale": lambda a: -a,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_arrays_that_do_not_fit_are_refused(saved, name):
    weight, bias, _ = make_layer(500, 30)
    index = build_lsh(weight, **TABLES)
    array = HOSTILE[name](index.arrays[name]).astype(index.arrays[name].dtype)
    index.arrays[name] = np.ascontiguousarray(array)
    with pytest.raises(Exception, match=rf"LinearTopK 'head': .*{name}.*expected"):
        onnxruntime.InferenceSession(saved(weight, bias, index), qcompile.session_options())


@pytest.mark.parametrize(
    ("name", "value"),
    [("probes", 1025), ("tables", 0), ("tables", 7), ("hashes", 22), ("family", "minhash")],
)
def test_attributes_out_of_range_are_refused(saved, name, value):
    weight, bias, _ = make_layer(500, 30)
    index = build_lsh(weight, **TABLES).with_attributes(**{name: value})
    with pytest.raises(Exception, match=r"LinearTopK 'head': .*(expected|known)"):
        onnxruntime.InferenceSession(saved(weight, bias, index), qcompile.session_options())
