"""Search in learned cells: the kernels against NumPy, and what is built."""

import itertools

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
from qcompile.runtime.index import build_cells
from qcompile.runtime.reference import head
from qcompile.runtime.reference.cells import cells_log_sum, cells_top_k
from qcompile.runtime.reference.index import merge, pack, unpack

ISAS = _core.supported_isas()


def make_layer(rows: int, depth: int, queries: int = 6, seed: int = 0):
    """Rows in clumps, as those of trained layers are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, rows // 20), depth))
    weight = centres[rng.integers(len(centres), size=rows)] + 0.5 * rng.normal(size=(rows, depth))
    bias = rng.normal(size=rows)
    hidden = rng.normal(size=(queries, depth))
    return tuple(array.astype(np.float32) for array in (weight, bias, hidden))


def load(weight, bias, index):
    return _core.Cells(weight, bias, *index.arrays.values())


def assert_as_reference(weight, bias, hidden, index, k, **search):
    expected = cells_top_k(hidden, weight, bias, index.arrays, k, **search)
    layer = load(weight, bias, index)
    for isa in ISAS:
        for threads in (1, 2):
            found = layer.top_k(hidden, k, isa=isa, threads=threads, **search)
            np.testing.assert_array_equal(found[1], expected[1], strict=True)
            np.testing.assert_array_equal(found[0], expected[0], strict=True)


@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (15, 3), (37, 1), (1000, 127), (2065, 64)])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_search_equals_the_reference(rows, depth, nonnegative):
    weight, bias, hidden = make_layer(rows, depth, queries=9)
    if nonnegative:
        hidden = np.maximum(hidden, 0)
    index = build_cells(weight, bias)
    for probes in (1, 4, 1000):
        search = {"probes": probes, "rescore": 20}
        assert_as_reference(weight, bias, hidden, index, min(rows, 7), **search)
        assert_as_reference(weight, bias, hidden, index, 1, spread=1.5, guard=2.0, **search)
        for groups in (1, 3):
            assert_as_reference(weight, bias, hidden, index, 1, groups=groups, spread=1.0, **search)


@pytest.mark.parametrize("guard", [0.0, 2.0])
@pytest.mark.parametrize(("rows", "depth"), [(1, 1), (37, 5), (1000, 127), (2065, 64)])
def test_the_partition_function_equals_the_reference(rows, depth, guard):
    weight, bias, hidden = make_layer(rows, depth, queries=9)
    bias[::7] = -np.inf
    hidden *= np.float32(0.3)
    index = build_cells(weight, bias)
    layer = load(weight, bias, index)
    for probes in (1, 4, 1000):
        search = {"probes": probes, "rescore": 20, "spread": 0.5, "guard": guard}
        for variance in (0.0, 1.0):
            wanted = cells_log_sum(
                hidden, weight, bias, index.arrays, min(rows, 7), variance=variance, **search
            )
            for isa, threads in itertools.product(ISAS, (1, 2)):
                found = layer.top_k(
                    hidden, min(rows, 7), log_sum=True, variance=variance, isa=isa, threads=threads,
                    **search,
                )  # fmt: skip
                # Rows far below the k-th keep their int8 scores.
                np.testing.assert_allclose(found[2], wanted, rtol=0, atol=5e-3)
                plain = layer.top_k(hidden, min(rows, 7), groups=10**6, **search)
                np.testing.assert_array_equal(found[0], plain[0])
                np.testing.assert_array_equal(found[1], plain[1])


def test_the_partition_function_of_odd_queries():
    weight, bias, hidden = make_layer(500, 16)
    hidden[1, 3], hidden[2, 5], hidden[3] = np.nan, np.inf, 0
    found = load(weight, bias, build_cells(weight, bias)).top_k(hidden, 3, probes=8, log_sum=True)
    assert np.isnan(found[2][1]) and not np.isfinite(found[2][2])
    # The biases alone: nothing is estimated but what int8 and fp32 round.
    assert abs(found[2][3, 0] - np.log(np.exp(bias.astype(np.float64)).sum())) < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.0, 1.0, 4.0]),
    st.booleans(),
)
def test_search_equals_the_reference_whatever_the_layer(
    rows, depth, probes, seed, groups, guard, coarse
):
    weight, bias, hidden = make_layer(rows, depth, queries=3, seed=seed)
    if coarse:  # many exact ties
        weight, bias, hidden = np.rint(weight), np.rint(bias), np.rint(hidden)
    rng = np.random.default_rng(seed)
    index = build_cells(weight, bias, cells=int(rng.integers(1, rows + 1)), seed=seed)
    k = int(rng.integers(1, rows + 1))
    assert_as_reference(weight, bias, hidden, index, k, probes=probes, groups=groups, guard=guard)


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_all_cells_and_rows_give_the_exact_answer(k):
    weight, bias, hidden = make_layer(1000, 40)
    layer = load(weight, bias, build_cells(weight, bias))
    expected = head.linear_top_k(hidden, weight, bias, k)
    found = layer.top_k(hidden, k, probes=1000, groups=1000, rescore=1000)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


def test_queries_that_are_not_finite_get_the_exact_answer():
    weight, bias, hidden = make_layer(900, 20)
    hidden[1, 3], hidden[2, 0] = np.nan, np.inf
    index = build_cells(weight, bias)
    with np.errstate(invalid="ignore"):
        assert_as_reference(weight, bias, hidden, index, 5, probes=3)
        expected = head.linear_top_k(hidden[1:3], weight, bias, 5)
    found = load(weight, bias, index).top_k(hidden[1:3], 5, probes=3)
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("make", [np.ones, np.zeros], ids=["equal", "zero"])
def test_rows_that_are_all_the_same(make):
    weight = make((5000, 5), np.float32)
    bias = np.arange(5000, dtype=np.float32) // 4
    index = build_cells(weight, bias)
    hidden = np.array([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0]], np.float32)
    assert_as_reference(weight, bias, hidden, index, 6, probes=2)
    found = load(weight, bias, index).top_k(hidden, 6, probes=100, groups=100, rescore=100)
    np.testing.assert_array_equal(found[1], head.linear_top_k(hidden, weight, bias, 6)[1])


def test_biases_that_are_not_finite():
    weight, bias, hidden = make_layer(900, 20)
    bias[::2], bias[700], bias[5] = -np.inf, np.inf, np.nan
    index = build_cells(weight, bias)
    for k in (1, 8, 700):
        assert_as_reference(weight, bias, hidden, index, k, probes=10, rescore=900)
    everything = load(weight, bias, index).top_k(hidden, 3, probes=900, groups=900, rescore=900)
    np.testing.assert_array_equal(everything[1], head.linear_top_k(hidden, weight, bias, 3)[1])


def test_a_guard_finds_what_too_few_probes_miss():
    weight, bias, hidden = make_layer(20_000, 32, queries=200)
    layer = load(weight, bias, build_cells(weight, bias))
    expected = head.linear_top_k(hidden, weight, bias, 1)[1]
    recall = [
        (layer.top_k(hidden, 1, probes=2, guard=guard)[1] == expected).mean()
        for guard in (0.0, 1.0, 3.0)
    ]
    assert recall[0] < recall[1] < recall[2]
    assert recall[2] > 0.9


def shifted(hidden, weight, bias, kind):
    """Queries unlike those that a number of probes was chosen for."""
    rng = np.random.default_rng(9)
    if kind == "noise":
        return hidden + 2 * rng.normal(size=hidden.shape).astype(np.float32)
    if kind == "rare":  # towards rows that their biases hide
        rare = np.argsort(bias)[: len(hidden)]
        return (hidden + 2 * weight[rare]).astype(np.float32)
    return (hidden * {"small": 0.02, "large": 50}[kind]).astype(np.float32)


@pytest.mark.parametrize("kind", ["small", "large", "noise", "rare"])
def test_a_guard_keeps_recall_on_shifted_inputs(kind):
    weight, bias, hidden = make_layer(8000, 24, queries=200)
    bias *= 3
    hidden = shifted(hidden, weight, bias, kind)
    layer = load(weight, bias, build_cells(weight, bias))
    expected = head.linear_top_k(hidden, weight, bias, 1)[1]
    recall = [
        (layer.top_k(hidden, 1, probes=8, guard=guard)[1] == expected).mean()
        for guard in (0.0, 3.0)
    ]
    assert recall[1] >= 0.95, recall
    assert recall[1] > recall[0]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_building_is_deterministic(threads, isa):
    weight, bias, _ = make_layer(3000, 33)
    expected = build_cells(weight, bias, seed=5, threads=1).arrays
    cells = len(expected["cell_bias"]) + 20
    found = _core.build_cells(weight, bias, cells, 5, threads, None, isa)
    again = _core.build_cells(weight, bias, cells, 5, 1, None, "scalar")
    for name, array in again.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_what_is_built():
    weight, bias, _ = make_layer(3001, 30)
    arrays = build_cells(weight, bias, cells=200).arrays
    ids = arrays["row_ids"]
    assert sorted(ids[ids >= 0]) == list(range(3001))
    packed = pack(weight)
    places = np.flatnonzero(ids >= 0)
    rows = unpack(arrays["packed"], len(ids), 30)
    np.testing.assert_array_equal(rows[places], unpack(merge(packed.packed), 3001, 30)[ids[places]])
    np.testing.assert_array_equal(arrays["scale"][places], packed.scale[ids[places]])
    np.testing.assert_array_equal(arrays["error"][places], packed.error[ids[places]])
    assert not rows[ids < 0].any() and not arrays["scale"][ids < 0].any()
    blocks = arrays["group_offsets"].astype(int)
    assert 10 < len(blocks) - 1 <= 20
    cells = len(arrays["cell_bias"])
    assert cells == 16 * blocks[-1] == 16 * len(arrays["centroids"])
    filled = np.flatnonzero(np.diff(arrays["offsets"].astype(int)))
    assert 150 < len(filled) <= 200
    empty = np.setdiff1d(np.arange(cells), filled)
    assert (arrays["cell_bias"][empty] == np.finfo(np.float32).min).all()
    assert not arrays["cell_spread"][empty].any() and not arrays["centroid_scale"][empty].any()
    means = []
    for cell in filled:
        begin, end = (int(at) * 16 for at in arrays["offsets"][cell : cell + 2])
        members = ids[begin:end][ids[begin:end] >= 0]
        assert end - begin - len(members) < 16
        mean = weight[members].mean(axis=0)
        means.append(mean)
        np.testing.assert_allclose(arrays["cell_bias"][cell], bias[members].mean(), atol=1e-5)
        spread = np.sqrt(np.square(weight[members] - mean).mean())
        np.testing.assert_allclose(arrays["cell_spread"][cell], spread, rtol=1e-5)
    quantised = unpack(arrays["centroids"], cells, 30) * arrays["centroid_scale"][:, None]
    np.testing.assert_allclose(quantised[filled], means, atol=0.02)
    groups = unpack(arrays["group_centroids"], len(blocks) - 1, 30)
    groups = groups * arrays["group_scale"][:, None]
    for group, (begin, end) in enumerate(itertools.pairwise(16 * blocks)):
        of = (filled >= begin) & (filled < end)
        assert 0 <= end - begin - of.sum() < 16
        mean = np.array(means)[of].mean(axis=0)
        np.testing.assert_allclose(groups[group], mean, atol=0.02)
        biases = arrays["cell_bias"][filled[of]]
        np.testing.assert_allclose(
            arrays["group_bias"][group], biases.mean() + biases.std(), atol=1e-5
        )
        spread = np.sqrt(np.square(np.array(means)[of] - mean).mean())
        np.testing.assert_allclose(arrays["group_spread"][group], spread, rtol=1e-4, atol=1e-6)
    # Rows lie in the cell whose centroid is nearest, but for the last move of the centroids.
    distance = np.square(weight[:, None] - np.array(means)).sum(axis=2)
    cell_of = np.repeat(np.arange(cells), np.diff(arrays["offsets"].astype(int)) * 16)
    own = np.empty(3001, int)
    own[ids[places]] = np.searchsorted(filled, cell_of[places])
    assert (distance.argmin(axis=1) == own).mean() > 0.8


def test_progress_is_told_and_may_stop_the_build():
    weight, bias, _ = make_layer(2000, 16)
    parts: list[float] = []
    build_cells(weight, bias, progress=parts.append)
    assert parts == sorted(parts) and parts[-1] == 1.0 and len(parts) > 5

    def stop(part: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        build_cells(weight, bias, progress=stop)


def test_building_refuses_what_it_cannot_use():
    weight, bias, _ = make_layer(100, 8)
    for cells in (0, 101):
        with pytest.raises(DataError, match="expected 1 to the 100 rows"):
            build_cells(weight, bias, cells=cells)
    with pytest.raises(DataError, match="bias"):
        build_cells(weight, bias[:99].copy())
    weight[7, 3] = np.nan
    with pytest.raises(DataError, match="row 7"):
        build_cells(weight, bias)


def test_attributes_are_checked():
    weight, bias, _ = make_layer(50, 8)
    index = build_cells(weight, bias).with_attributes(probes=3, guard=1)
    assert dict(index.attributes) == {"probes": 3, "guard": 1.0}
    with pytest.raises(DataError, match="no attribute 'probe'"):
        index.with_attributes(probe=3)
    with pytest.raises(DataError, match="expected int"):
        index.with_attributes(probes="many")


@pytest.fixture
def saved(tmp_path):
    def save(weight, bias, index, k=5, **options):
        path = str(tmp_path / "cells.onnx")
        ir.save(top_k_model(weight, bias, k, index, **options), path)
        return path

    return save


@pytest.mark.parametrize("opset", [11, 18])
def test_the_file_runs_with_and_without_the_plugin(saved, opset):
    weight, bias, hidden = make_layer(3000, 30, queries=70)
    index = build_cells(weight, bias).with_attributes(probes=9, rescore=40, spread=0.5, guard=0.1)
    path = saved(weight, bias, index, opset=opset)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, qcompile.session_options())
    scores, ids = session.run(None, {"hidden": hidden})
    expected = cells_top_k(hidden, weight, bias, index.arrays, 5, **index.attributes)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
    body = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    exact = head.linear_top_k(hidden, weight, bias, 5)
    np.testing.assert_array_equal(body.run(None, {"hidden": hidden})[1], exact[1])
    empty = session.run(None, {"hidden": hidden[:0]})
    assert empty[0].shape == empty[1].shape == (0, 5)


HOSTILE = {
    "packed": lambda a: a[:, :-1],
    "scale": lambda a: np.where(np.arange(len(a)) == 3, np.nan, a),
    "error": lambda a: -a,
    "offsets": lambda a: a[::-1],
    "row_ids": lambda a: np.where(a == 5, 6, a),
    "centroids": lambda a: a[..., :3],
    "centroid_scale": lambda a: a[:-1],
    "cell_bias": lambda a: np.full_like(a, np.inf),
    "cell_spread": lambda a: -1 - a,
    "group_offsets": lambda a: a[::-1],
    "group_centroids": lambda a: a[:, 1:],
    "group_scale": lambda a: -1 - a,
    "group_bias": lambda a: np.full_like(a, np.nan),
    "group_spread": lambda a: a[1:],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_arrays_that_do_not_fit_are_refused(saved, name):
    weight, bias, _ = make_layer(500, 30)
    index = build_cells(weight, bias)
    array = HOSTILE[name](index.arrays[name]).astype(index.arrays[name].dtype)
    index.arrays[name] = np.ascontiguousarray(array)
    with pytest.raises(Exception, match=rf"LinearTopK 'head': .*{name}.*expected"):
        onnxruntime.InferenceSession(saved(weight, bias, index), qcompile.session_options())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("probes", 0),
        ("groups", 0),
        ("rescore", -1),
        ("spread", -1.0),
        ("guard", np.inf),
        ("variance", -1.0),
        ("mode", "shells"),
    ],
)
def test_attributes_out_of_range_are_refused(saved, tmp_path, name, value):
    weight, bias, _ = make_layer(500, 30)
    path = saved(weight, bias, build_cells(weight, bias))
    model = ir.load(path)
    node = model.graph[-1]
    attribute = {int: ir.AttrInt64, float: ir.AttrFloat32, str: ir.AttrString}[type(value)]
    node.attributes[name] = attribute(name, value)
    ir.save(model, path)
    with pytest.raises(Exception, match=rf"LinearTopK 'head': attribute {name} is .*expected"):
        onnxruntime.InferenceSession(path, qcompile.session_options())


def test_a_wrong_number_of_inputs_is_refused(saved):
    weight, bias, _ = make_layer(500, 30)
    path = saved(weight, bias, build_cells(weight, bias))
    model = ir.load(path)
    node = model.graph[-1]
    node.resize_inputs(9)
    ir.save(model, path)
    with pytest.raises(Exception, match="LinearTopK 'head': 9 inputs, expected 17 in mode cells"):
        onnxruntime.InferenceSession(path, qcompile.session_options())
