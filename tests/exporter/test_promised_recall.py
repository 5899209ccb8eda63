"""A promised recall: searched on half of the inputs, judged by the other, kept on fresh ones."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_graphs import model

import qcompile
from qcompile.errors import ConfigurationError, DataError
from qcompile.exporter import export_onnx

ROWS, DEPTH, CLASSES = 900, 17, 6007


def inputs(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 12)).astype(np.float32)


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((80, DEPTH))
    weight = topics[rng.integers(80, size=CLASSES)] + 0.4 * rng.standard_normal((CLASSES, DEPTH))
    built = model(
        "p = MatMul(h, front) r = Relu(p) m = MatMul(r, w) y = Add(m, b)",
        inputs="float[B, 12] h",
        outputs=f"float[B, {CLASSES}] y",
        front=rng.standard_normal((12, DEPTH)).astype(np.float32),
        w=weight.T.astype(np.float32),
        b=rng.standard_normal(CLASSES).astype(np.float32),
    )
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(built), path)
    return path


def answers(path, rows: np.ndarray, plugin: bool) -> list[np.ndarray]:
    options = qcompile.session_options() if plugin else onnxruntime.SessionOptions()
    return onnxruntime.InferenceSession(str(path), options).run(None, {"h": rows})


def test_a_promise_is_kept_on_fresh_inputs(source, tmp_path, monkeypatch):
    monkeypatch.setattr("qcompile.calibration.search._WORTH", float("inf"))  # whatever the clock
    np.savez(tmp_path / "inputs.npz", h=inputs(1))
    result = export_onnx(
        source, top_k=5, recall=0.9, calibration=tmp_path / "inputs.npz", measure=False
    )
    (choice,) = result.choices.values()
    assert choice.index.mode == "cells"
    assert choice.proven
    assert choice.recall.at == 5
    assert choice.recall.bound >= 0.9
    fresh = inputs(2)
    full = answers(source, fresh, plugin=False)[0]
    best = np.argsort(-full, axis=1, kind="stable")[:, :5]
    scores, ids = answers(result.path, fresh, plugin=True)
    found = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ids, best, strict=True)])
    assert found > 0.88
    np.testing.assert_allclose(scores, np.take_along_axis(full, ids, 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(answers(result.path, fresh, plugin=False)[1], best)
    metadata = {p.key: p.value for p in onnx.load(result.path).metadata_props}
    told = json.loads(metadata["qcompile.calibration"])
    assert metadata["qcompile.mode"] == "cells"
    assert float(metadata["qcompile.recall"]) == choice.recall.mean
    assert json.loads(json.dumps(choice.to_dict())) in told.values()


@pytest.mark.parametrize("distribution", ["Softmax", "LogSoftmax"])
def test_probabilities_are_estimated_and_the_error_is_measured(
    source, tmp_path, monkeypatch, distribution
):
    monkeypatch.setattr("qcompile.calibration.search._WORTH", float("inf"))  # whatever the clock
    soft = onnx.load(source)
    soft.graph.node.append(onnx.helper.make_node(distribution, ["y"], ["soft"], axis=-1))
    soft.graph.output[0].name = "soft"
    onnx.save(soft, tmp_path / "soft.onnx")
    result = export_onnx(
        tmp_path / "soft.onnx", top_k=5, recall=0.9, calibration={"h": inputs(1)}, measure=False
    )
    (choice,) = result.choices.values()
    assert choice.index.mode == "cells"
    assert choice.index.attributes["probes"] >= 16
    error = choice.log_error
    assert 0 < error.median <= error.high <= error.largest
    told = json.loads(json.dumps(choice.to_dict()))
    assert told["log_error"]["queries"] == error.queries == ROWS // 2
    fresh = inputs(2, 500)
    full = answers(tmp_path / "soft.onnx", fresh, plugin=False)[0]
    found, ids = answers(result.path, fresh, plugin=True)
    exact = np.take_along_axis(full, ids, 1)
    if distribution == "Softmax":
        found, exact = np.log(found), np.log(exact)
    apart = np.abs(found - exact)[:, 0]
    assert np.quantile(apart, 0.95) <= 2 * error.high + 1e-4
    plain = answers(result.path, fresh, plugin=False)[0]
    np.testing.assert_allclose(plain, np.sort(full)[:, :-6:-1], rtol=1e-4, atol=1e-5)


def test_nothing_missed_is_promised_by_the_exact_scan_alone(source):
    result = export_onnx(
        source, top_k=2, recall=1.0, calibration={"h": inputs(1, 40)}, measure=False
    )
    (choice,) = result.choices.values()
    assert choice.index.mode == "exact"
    assert [recall.mean for recall in choice.recalls] == [1.0, 1.0]


def test_the_exact_scan_is_taken_where_nothing_is_faster(source, monkeypatch):
    monkeypatch.setattr("qcompile.calibration.search._WORTH", 0.0)
    result = export_onnx(
        source, top_k=1, recall=0.5, calibration={"h": inputs(1, 60)}, measure=False
    )
    (choice,) = result.choices.values()
    assert (choice.index.mode, choice.reason) == ("exact", "nothing approximate was faster")


def test_all_scores_stay_exact_and_the_report_says_why(source):
    result = export_onnx(source, recall=0.9, calibration={"h": inputs(1, 40)}, measure=False)
    assert not result.choices
    assert any("stays exact" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"recall": 0.9}, ConfigurationError, "calibration inputs missing"),
        ({"calibration": {"h": inputs(1, 9)}}, ConfigurationError, "a recall to keep missing"),
        ({"recall": 1.1, "calibration": {"h": inputs(1, 9)}}, ConfigurationError, "recall is 1.1"),
        ({"recall": 0.9, "calibration": {"h": inputs(1, 1)}}, DataError, "nothing to judge by"),
        ({"recall": 0.9, "calibration": {"h": inputs(1, 1), "batch": 2}}, DataError, "fits|length"),
        ({"recall": 0.9, "calibration": "nowhere.npz"}, DataError, "cannot be read"),
        (
            {"recall": 0.9, "calibration": {"h": np.full((9, 12), np.nan, np.float32)}},
            DataError,
            "hold NaN or infinity",
        ),
    ],
)
def test_what_cannot_be_calibrated_leaves_nothing(source, files, keywords, error, message):
    with pytest.raises(error, match=message):
        export_onnx(source, top_k=2, measure=False, **keywords)
    assert files() == ["model.onnx"]


@pytest.mark.parametrize("mode", ["cells", "lsh"])
def test_a_mode_without_a_promise(source, mode):
    result = export_onnx(source, top_k=3, mode=mode, measure=False)
    assert "not measured" in " ".join(result.report.notes)
    metadata = {p.key: p.value for p in onnx.load(result.path).metadata_props}
    assert (metadata["qcompile.mode"], metadata["qcompile.recall"]) == (mode, "not measured")
    fresh = inputs(2)
    full = answers(source, fresh, plugin=False)[0]
    scores, ids = answers(result.path, fresh, plugin=True)
    np.testing.assert_allclose(scores, np.take_along_axis(full, ids, 1), rtol=1e-4, atol=1e-4)


def test_hash_tables_that_keep_a_promise(source, monkeypatch):
    monkeypatch.setattr("qcompile.calibration.search._WORTH", float("inf"))
    tables = qcompile.LSH(family="simhash", tables=30, hashes=6, bucket=CLASSES)
    result = export_onnx(
        source, top_k=2, recall=0.8, calibration={"h": inputs(1)}, mode="lsh", lsh=tables,
        measure=False,
    )  # fmt: skip
    (choice,) = result.choices.values()
    assert choice.index.mode == "lsh"
    assert choice.recall.bound >= 0.8
    assert choice.index.attributes["tables"] == 30


def test_codes_that_keep_a_promise(source, monkeypatch):
    def fewest(*calls: object, most: int) -> list[float]:
        """Let the clock say that of three kinds of rows codes of two bits are the fastest."""
        return [float(n) for n in range(len(calls), 0, -1)]

    monkeypatch.setattr("qcompile.calibration.search.interleaved", fewest)
    result = export_onnx(source, top_k=5, recall=0.9, calibration={"h": inputs(1)}, measure=False)
    (choice,) = result.choices.values()
    assert choice.index.attributes["bits"] == choice.to_dict()["attributes"]["bits"] == 2
    assert choice.recall.bound >= 0.9
    assert all(trial.attributes["bits"] == 2 for trial in choice.trials)
    assert choice.index.arrays["packed"].shape[1] == 2
    fresh = inputs(2)
    full = answers(source, fresh, plugin=False)[0]
    best = np.argsort(-full, axis=1, kind="stable")[:, :5]
    ids = answers(result.path, fresh, plugin=True)[1]
    assert (ids[:, :, None] == best[:, None]).any(1).mean() > 0.88


def test_modes_that_there_are_not(source):
    with pytest.raises(ConfigurationError, match="Known: exact, cells, lsh"):
        export_onnx(source, top_k=1, mode="shells")


@pytest.mark.parametrize(("seed", "recall"), [(0, 0.99), (5, 0.97), (6, 0.97)])
def test_one_setting_that_falls_short_by_chance_does_not_end_the_search(
    source, monkeypatch, seed, recall
):
    """Divisions of the inputs by which the settings that just suffice on one half fail."""
    monkeypatch.setattr("qcompile.calibration.search._WORTH", float("inf"))
    result = export_onnx(
        source, top_k=5, recall=recall, calibration={"h": inputs(1)}, seed=seed, measure=False
    )
    (choice,) = result.choices.values()
    assert choice.index.mode == "cells", choice.reason
    assert choice.recall.bound >= recall
