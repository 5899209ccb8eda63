"""Training learns, reports, and leaves nothing out."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import sparse

from qcompile.config import LSH
from qcompile.data import metrics
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.distributed import Group
from qcompile.errors import ConfigurationError, DataError, TrainingError
from qcompile.training import Observer, TrainConfig, train
from qcompile.training.build import build_model, build_optimizer
from qcompile.training.config import remaining_rate
from qcompile.training.evaluation import Evaluator

OUTPUT = LSH(tables=8, active=16, negatives=32, rehash=7)
CONFIG = TrainConfig(hidden=(16,), sparse_output=OUTPUT, epochs=4, batch=32, lr=2e-2)


class Watcher(Observer):
    def __init__(self):
        self.snapshots, self.evaluations, self.notes, self.ends = [], [], [], 0

    def stepped(self, snapshot):
        self.snapshots.append(snapshot)

    def evaluated(self, step, epoch, metrics):
        self.evaluations.append((step, epoch, dict(metrics)))

    def noted(self, text):
        self.notes.append(text)

    def closed(self):
        self.ends += 1


def changed(**values):
    return dataclasses.replace(CONFIG, **values)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        changed(sparse_output=dataclasses.replace(OUTPUT, mode="sampled")),
        changed(sparse_output=dataclasses.replace(OUTPUT, mode="full")),
        changed(sparse_output=dataclasses.replace(OUTPUT, accumulation="async")),
        changed(sparse_output=dataclasses.replace(OUTPUT, family="simhash", spread=2)),
        changed(storage="bf16"),
        changed(optimizer="sparse-adam"),
        changed(optimizer="adamw", weight_decay=1e-3),
        changed(optimizer="adam", weight_decay=1e-5),
        changed(optimizer="sgd", lr=4.0, schedule="constant"),
        changed(hidden=(24, 16)),
        changed(quadratic="T2_4"),
        changed(quadratic="Quadra", hidden=(24, 16)),
    ],
    ids=lambda config: (
        f"{config.sparse_output.mode}-{config.sparse_output.family}-{config.storage}-"
        f"{config.optimizer}-{config.quadratic}-{len(config.hidden)}"
    ),
)
def test_every_kind_of_network_learns(config, train_data, test_data):
    result = train(config, train_data, test_data)
    losses = [epoch.loss for epoch in result.history]
    assert losses[-1] < losses[0] - 0.5
    # The most frequent label alone is right in one example of eight.
    frequent = np.asarray(train_data.labels.sum(axis=0)).ravel().argmax()
    guess = float(test_data.labels[:, [frequent]].mean())
    assert result.metrics["P@1"] > 2 * guess
    assert not result.model.training


def test_the_result_tells_what_was_done(train_data, test_data):
    watcher = Watcher()
    result = train(CONFIG, train_data, test_data, observers=[watcher])
    steps = 4 * -(-len(train_data.labelled_rows) // 32)
    assert result.steps == steps
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3, 4]
    assert result.history[-1].step == steps
    assert result.seconds >= result.history[-1].seconds > result.history[0].seconds > 0
    assert result.peak_memory > 1 << 20
    assert result.interrupted is None
    assert [epoch for _, epoch, _ in watcher.evaluations] == [1, 2, 3, 4]
    assert watcher.evaluations[-1][2] == result.metrics
    assert watcher.snapshots[-1].step == steps
    assert watcher.ends == 1
    report = result.to_dict()
    assert report["config"] == CONFIG.to_dict()
    assert TrainConfig.from_dict(report["config"]) == CONFIG


def test_runs_are_reproducible_whatever_the_threads_and_who_watches(train_data, test_data):
    first = train(changed(threads=1), train_data)
    second = train(
        changed(threads=2, evaluate_every=2), train_data, test_data, observers=[Watcher()]
    )
    other = train(changed(seed=1), train_data)
    for one, two, three in zip(
        first.model.parameters(), second.model.parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)


def test_watching_leaves_no_trace(train_data, monkeypatch):
    monkeypatch.setattr("qcompile.training.meter._ESTIMATE_EVERY", 0.0)
    monkeypatch.setattr("qcompile.training.meter._ESTIMATE_SHARE", 1e9)
    watcher = Watcher()
    watched, alone = train(CONFIG, train_data, observers=[watcher]), train(CONFIG, train_data)
    assert watcher.snapshots[-1].precision > 0.1
    for one, two in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_figures_are_those_of_all_scores(train_data, test_data, storage, monkeypatch):
    monkeypatch.setattr("qcompile.training.evaluation._ACTIVATIONS", 16 * 37)
    monkeypatch.setattr("qcompile.training.evaluation._NEURONS", 30)
    model = train(changed(epochs=1, storage=storage), train_data).model
    rows = np.arange(len(test_data))
    labels = test_data.labels.copy()
    labels.data[:3] = False
    labels.eliminate_zeros()  # some rows have none
    test_data = SparseDataset(test_data.features, labels)
    assert len(test_data.labelled_rows) < len(rows)
    found = Evaluator(train_data, test_data, Group())(model)
    with torch.no_grad():
        hidden = model.encode(test_data.batch(rows).features)
        scores = hidden @ model.output.weight.float().t() + model.output.bias.float()
    labels = test_data.labels[rows]
    weights = metrics.propensity_weights(train_data.labels)
    for k in (1, 3, 5):
        wanted = {
            "P": metrics.precision_at_k(scores, labels, k),
            "nDCG": metrics.ndcg_at_k(scores, labels, k),
            "PSP": metrics.psp_at_k(scores, labels, weights, k),
            "PSnDCG": metrics.psndcg_at_k(scores, labels, weights, k),
        }
        for name, value in wanted.items():
            assert found[f"{name}@{k}"] == pytest.approx(value, abs=1e-9)


def test_evaluations_come_when_asked_for_and_at_the_end(train_data, test_data):
    for every, wanted in ((0, [4]), (1, [1, 2, 3, 4]), (3, [3, 4])):
        result = train(changed(evaluate_every=every), train_data, test_data)
        assert [epoch.epoch for epoch in result.history if epoch.metrics] == wanted


def test_few_labels_and_rows_without_any_are_fine():
    features = sparse.identity(12, format="csr", dtype=np.float32)
    labels = sparse.csr_matrix((np.ones(8), np.arange(8) % 2, [*range(9), 8, 8, 8, 8]), (12, 2))
    data = SparseDataset(features, labels)
    result = train(changed(batch=5, epochs=2), data, data)
    assert result.skipped == 4
    assert result.steps == 4
    assert set(result.metrics) == {"P@1", "nDCG@1", "PSP@1", "PSnDCG@1"}


def test_rows_without_features_are_fine(train_data):
    features = train_data.features.copy()
    features.data[:50] = 0
    features.eliminate_zeros()
    data = SparseDataset(features, train_data.labels)
    assert np.isfinite(train(changed(epochs=1), data).history[0].loss)


def test_data_that_does_not_fit_is_refused(train_data):
    wider = SparseDataset(
        sparse.csr_matrix((3, train_data.num_features + 1)), sparse.csr_matrix((3, 111))
    )
    with pytest.raises(DataError, match="301 features"):
        train(CONFIG, train_data, wider)
    nothing = SparseDataset(sparse.csr_matrix((0, 3)), sparse.csr_matrix((0, 2)))
    with pytest.raises(DataError, match="none of 0 rows"):
        train(CONFIG, nothing)
    bare = SparseDataset(sparse.csr_matrix((3, 300)), sparse.csr_matrix((3, 111)))
    with pytest.raises(DataError, match="test data: none of 3 rows"):
        train(CONFIG, train_data, bare)


def test_divergence_is_an_error_with_a_remedy(train_data):
    with pytest.raises(TrainingError, match="lower --lr"):
        train(changed(lr=1e30, optimizer="sgd"), train_data)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden": ()},
        {"hidden": (0,)},
        {"hidden": (True,)},
        {"optimizer": "adagrad"},
        {"storage": "fp16"},
        {"schedule": "cosine"},
        {"quadratic": "T9"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"input_lr": -1.0},
        {"input_lr": "fast"},
        {"epochs": 0},
        {"batch": 1.5},
        {"seed": -1},
        {"top_k": 0},
        {"checkpoint_minutes": -1.0},
    ],
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ConfigurationError):
        changed(**values)


def test_the_rate_falls_linearly_or_stays():
    rates = [remaining_rate("linear", step, 100) for step in (0, 50, 100)]
    assert rates == pytest.approx([1, 0.505, 0.01])
    assert remaining_rate("constant", 70, 100) == 1


def test_the_first_layer_may_have_a_rate_of_its_own(train_data):
    config = changed(hidden=(16, 8), input_lr=0.5)
    model = build_model(config, train_data, Group())
    first, rest = build_optimizer(config, model).param_groups
    assert (first["lr"], rest["lr"]) == (0.5, config.lr)
    assert first["params"] == list(model.input.parameters())
    assert len(rest["params"]) == 4
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    # Without a rate it stays as it was drawn, and all else learns.
    still = train(changed(hidden=(16, 8), input_lr=0.0, epochs=1), train_data).model.state_dict()
    for name, before in begun.items():
        if not name.endswith("_extra_state"):
            assert torch.equal(still[name], before) == name.startswith("input."), name
    same = train(CONFIG, train_data).model.state_dict()
    apart = train(changed(input_lr=CONFIG.lr), train_data).model.state_dict()
    assert all(torch.equal(same[name], apart[name]) for name in same)
