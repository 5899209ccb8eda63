import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from promised_recall import promise
from retrieval import graphs, peers
from retrieval.engine import K
from retrieval.heads import best, synthetic, truth
from retrieval.sessions import Ours, Standard
from retrieval.table import Built, Measured, bars, cheapest, plot


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return synthetic("w20", tmp_path_factory.mktemp("heads"), queries=64)


def test_products_with_the_bias_as_a_coordinate_are_scores(head):
    some = np.asarray(head.queries[:5])
    for form in ({}, {"multiple": 4}, {"equally_long": True}):
        products = peers.queries(some, **form) @ peers.rows(head, **form).T
        assert np.allclose(products, some @ head.weight.T + head.bias, atol=1e-3)
    lengths = np.linalg.norm(peers.rows(head, equally_long=True), axis=1)
    assert np.ptp(lengths) < 1e-3


def test_the_nearest_row_has_the_largest_score(head):
    rows = peers.rows(head, equally_long=True)
    for query, right in zip(head.queries[:5], best(head, 1, head.queries[:5]), strict=True):
        distance = np.square(rows - peers.queries(query[None], equally_long=True)).sum(axis=1)
        assert distance.argmin() == right[0]


@pytest.mark.parametrize(
    ("engine", "least"),
    [
        (Ours("exact"), 1.0),
        (Ours("cells"), 0.9),
        (Ours("cells", bits=4), 0.9),
        (Standard(graphs.FLOAT), 0.999),
        (Standard(graphs.INT8), 0.9),
        (Standard(graphs.INT8_RESCORED), 0.999),
        (Standard(graphs.NBITS), 0.9),
    ],
    ids=["exact", "cells", "codes", "fp32", "int8", "rescored", "nbits"],
)
def test_engines_answer(head, engine, least, tmp_path):
    engine.build(head, tmp_path)()
    engine.open(head, tmp_path, 1)
    right = np.load(truth(head, K, 64, tmp_path / "truth.npy"))
    call = engine.search(engine.points(head)[-1])
    together = call(np.asarray(head.queries))
    alone = call(np.asarray(head.queries[:1]))
    assert together.shape == right.shape == (64, K)
    assert (
        np.mean([len(set(a) & set(b)) / K for a, b in zip(together, right, strict=True)]) >= least
    )
    assert len(set(alone[0]) & set(right[0])) >= 0.9 * K


def test_truth_is_that_of_float64(head, tmp_path):
    right = np.load(truth(head, K, 64, tmp_path / "truth.npy"))
    scores = head.queries.astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias
    assert np.array_equal(right, np.argsort(-scores, axis=1, kind="stable")[:, :K])


def measured(engine, ms, recall, batch=1, threads=1):
    return Measured("w670", engine, threads, "", batch, ms, recall, recall)


def test_bars_compare_the_cheapest_points():
    rows = [
        measured("qcompile cells", 0.01, 0.98),
        measured("qcompile cells", 0.02, 0.995),
        measured("qcompile cells", 0.03, 1.0),
        measured("ScaNN", 0.025, 0.98),
        measured("ScaNN", 0.04, 0.991),
    ]
    assert cheapest(rows, "recall_1", 0.99, engine="ScaNN").ms == 0.04
    assert cheapest(rows, "recall_1", 0.999, engine="ScaNN") is None
    built = [
        Built("w670", "ScaNN", 40.0, 20.0, 1, 0.1, 1, 1),
        Built("w670", "qcompile cells", 10.0, 5.0, 1, 0.1, 1, 1),
    ]
    found = {bar["name"]: (bar["value"], bar["ok"]) for bar in bars(rows, built)}
    assert found["w670, batch 1: cells against ScaNN, recall@1 ≥ 0.99"] == (2.0, True)
    assert found["w670, batch 1: cells against ScaNN, recall@10 ≥ 0.95"] == (2.5, True)
    assert found["w670: CPU seconds of building, ScaNN against cells"] == (4.0, False)


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [measured("ScaNN", 0.1, 0.9), measured("ScaNN", 0.2, 1.0, batch=64)]
    plot(rows, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_promise_is_measured_on_vectors_that_calibration_has_not_seen(head, tmp_path):
    source = tmp_path / "dense.onnx"
    graphs.write(graphs.FLOAT, head, K, source)
    row = promise(head, source, 0.5, 0.0, tmp_path)
    assert row.head == head.name
    assert row.queries == len(head.queries)
    assert row.fresh >= 0.4
    assert row.calibrated >= row.bound
