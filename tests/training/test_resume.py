"""A run that was stopped and resumed ends with the bits of one that was not."""

import dataclasses
import errno
import json
import os

import pytest
import torch

from qcompile.config import LSH
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.data.synthetic import extreme_classification
from qcompile.errors import CheckpointError, QCompileWarning
from qcompile.training import Observer, TrainConfig, checkpoint, tensor_files, train

OUTPUT = LSH(tables=6, active=16, negatives=24, rehash=9)
# 63 steps an epoch.
CONFIG = TrainConfig(
    hidden=(12, 8), sparse_output=OUTPUT, epochs=3, batch=32, lr=1e-2, save_point_steps=10
)
ALWAYS = 1e-9  # minutes between checkpoints


class Killed(BaseException):
    pass


class KillAt(Observer):
    """Ends a run as a crash would: with no chance to save."""

    def __init__(self, step):
        self.step = step

    def stepped(self, snapshot):
        if snapshot.step >= self.step:
            raise Killed


@pytest.fixture(autouse=True)
def every_step_is_reported(monkeypatch):
    monkeypatch.setattr("qcompile.training.meter._REPORT_EVERY", 0.0)


def changed(**values):
    return dataclasses.replace(CONFIG, **values)


def killed(config, data, folder, step, **options):
    with pytest.raises(Killed):
        train(config, data, checkpoints=folder, observers=[KillAt(step)], **options)


def equal(one, two):
    state, other = one.model.state_dict(), two.model.state_dict()
    assert state.keys() == other.keys()
    return all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        changed(storage="bf16", input_lr=3e-2),
        changed(optimizer="adamw", weight_decay=1e-2, quadratic="T2_4"),
        changed(optimizer="sparse-adam"),
        changed(optimizer="sparse-adam", storage="bf16"),
        changed(optimizer="sgd", lr=1.0),
        changed(optimizer="adam", weight_decay=1e-4),
        changed(sparse_output=dataclasses.replace(OUTPUT, spread=3, renew=2, rehash_decay=0.0)),
        changed(sparse_output=dataclasses.replace(OUTPUT, family="simhash", incremental=False)),
        changed(sparse_output=dataclasses.replace(OUTPUT, mode="sampled")),
        changed(sparse_output=dataclasses.replace(OUTPUT, mode="full")),
    ],
    ids=lambda c: f"{c.storage}-{c.optimizer}-{c.sparse_output.family}-{c.sparse_output.mode}",
)
def test_killed_and_resumed_equals_uninterrupted(config, train_data, test_data, tmp_path):
    # Saves at the ends of epochs alone, so the runs' checkpoints differ, too.
    whole = train(config, train_data, test_data, checkpoints=tmp_path / "whole")
    often = dataclasses.replace(config, checkpoint_minutes=ALWAYS)
    for step in (47, 90):
        killed(often, train_data, tmp_path / "cut", step, resume=step > 47)
    assert checkpoint.find(tmp_path / "cut").name == "step-000000000080"
    resumed = train(often, train_data, test_data, checkpoints=tmp_path / "cut", resume=True)
    assert equal(whole, resumed)
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    assert resumed.metrics == whole.metrics
    saved, kept = (checkpoint.load(tmp_path / name) for name in ("whole", "cut"))
    assert saved.tensors.keys() == kept.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(tensor, kept.tensors[name]), name


def test_the_optimiser_catching_up_by_itself_changes_nothing(tmp_path):
    # It does so after 1,024 steps; here between two save points, and after a resumed one.
    data = SparseDataset(*extreme_classification(2200, features=300, labels=50, nonzeros=5))
    output = dataclasses.replace(OUTPUT, mode="sampled", negatives=4)
    config = changed(hidden=(8,), epochs=1, batch=1, save_point_steps=1040, sparse_output=output)
    whole = train(config, data, checkpoints=tmp_path / "whole")
    assert whole.steps > 1040 + 1024
    often = dataclasses.replace(config, checkpoint_minutes=ALWAYS)
    killed(often, data, tmp_path / "cut", 1050)
    assert checkpoint.find(tmp_path / "cut").name == "step-000000001040"
    assert equal(whole, train(often, data, checkpoints=tmp_path / "cut", resume=True))


def test_a_finished_run_resumes_to_itself(train_data, test_data, tmp_path):
    first = train(CONFIG, train_data, test_data, checkpoints=tmp_path)
    again = train(CONFIG, train_data, test_data, checkpoints=tmp_path, resume=True)
    assert again.steps == first.steps
    assert again.metrics == first.metrics
    assert equal(first, again)


def test_what_does_not_move_the_weights_may_change(train_data, test_data, tmp_path):
    whole = train(CONFIG, train_data, checkpoints=tmp_path / "whole")
    killed(CONFIG, train_data, tmp_path / "cut", 70)
    other = changed(threads=2, evaluate_every=0, top_k=2, checkpoint_minutes=3.0)
    resumed = train(other, train_data, test_data, checkpoints=tmp_path / "cut", resume=True)
    assert equal(whole, resumed)


def test_another_configuration_is_refused_by_name(train_data, tmp_path):
    killed(CONFIG, train_data, tmp_path, 70)
    other = changed(hidden=(12, 9), sparse_output=dataclasses.replace(OUTPUT, tables=7))
    with pytest.raises(CheckpointError) as raised:
        train(other, train_data, checkpoints=tmp_path, resume=True)
    message = str(raised.value)
    assert "hidden is [12, 9], was [12, 8]" in message
    assert "sparse_output.tables is 7, was 6" in message
    assert "batch" not in message


def test_other_data_is_refused_by_name(train_data, tmp_path):
    killed(CONFIG, train_data, tmp_path, 70)
    fewer = train_data.subset(range(1900))
    with pytest.raises(CheckpointError, match=r"training data \(rows: 1,900 now, 2000 before"):
        train(CONFIG, fewer, checkpoints=tmp_path, resume=True)
    features = train_data.features.copy()
    features.data[7] += 1
    with pytest.raises(CheckpointError, match="the values, though not the sizes"):
        train(CONFIG, SparseDataset(features, train_data.labels), checkpoints=tmp_path, resume=True)


def test_a_new_run_does_not_overwrite_another(train_data, tmp_path):
    killed(CONFIG, train_data, tmp_path, 70)
    with pytest.raises(CheckpointError, match="--resume"):
        train(CONFIG, train_data, checkpoints=tmp_path)


def test_nothing_to_resume_is_said(train_data, tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        train(CONFIG, train_data, checkpoints=tmp_path / "absent", resume=True)


def test_a_checkpoint_with_its_parts_exchanged_is_refused(train_data, tmp_path):
    killed(CONFIG, train_data, tmp_path, 70)
    path = checkpoint.find(tmp_path) / "state.json"
    state = json.loads(path.read_text())
    state["model"]["input.weight"] = state["model"]["output.weight"]
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="not of this network"):
        train(CONFIG, train_data, checkpoints=tmp_path, resume=True)


def full_disk(monkeypatch, fails):
    """Let the checkpoints whose number ``fails`` picks run out of space half way."""
    count = 0
    write = tensor_files.write_tensors

    def limited(path, tensors):
        nonlocal count
        count += 1
        if fails(count):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", limited)


def test_a_full_disk_keeps_the_earlier_checkpoint_and_training_goes_on(
    train_data, tmp_path, monkeypatch
):
    whole = train(CONFIG, train_data, checkpoints=tmp_path / "whole")
    full_disk(monkeypatch, lambda number: number == 2)
    with pytest.warns(
        QCompileWarning, match="not saved, training goes on: .*No space left"
    ) as said:
        other = train(CONFIG, train_data, checkpoints=tmp_path / "full")
    assert len(said) == 1
    assert "step-000000000126: cannot be written" in str(said[0].message)
    assert equal(whole, other)
    assert sorted(p.name[-3:] for p in (tmp_path / "full").iterdir()) == ["063", "189"]


def test_a_disk_that_is_full_at_the_end_is_an_error_and_loses_nothing(
    train_data, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        full_disk(patch, lambda number: number > 2)
        with (
            pytest.warns(QCompileWarning, match="not saved, training goes on"),
            pytest.raises(CheckpointError, match="No space left"),
        ):
            train(CONFIG, train_data, checkpoints=tmp_path / "full")
    assert sorted(p.name[-3:] for p in (tmp_path / "full").iterdir()) == ["063", "126"]
    resumed = train(CONFIG, train_data, checkpoints=tmp_path / "full", resume=True)
    assert equal(train(CONFIG, train_data, checkpoints=tmp_path / "whole"), resumed)


def test_a_checkpoint_without_a_rate_for_the_first_layer_is_resumed(train_data, tmp_path):
    killed(CONFIG, train_data, tmp_path / "old", 70)
    path = checkpoint.find(tmp_path / "old") / "state.json"
    state = json.loads(path.read_text())
    # As the releases before it was an option wrote them: one group of parameters.
    del state["config"]["input_lr"]
    first, rest = state["optimizer"]["param_groups"]
    state["optimizer"]["param_groups"] = [{**rest, "params": first["params"] + rest["params"]}]
    path.write_text(json.dumps(state))
    resumed = train(CONFIG, train_data, checkpoints=tmp_path / "old", resume=True)
    assert equal(train(CONFIG, train_data, checkpoints=tmp_path / "whole"), resumed)


def test_another_release_of_the_configuration_is_refused(train_data, tmp_path):
    killed(CONFIG, train_data, tmp_path, 70)
    path = checkpoint.find(tmp_path) / "state.json"
    state = json.loads(path.read_text())
    state["config"]["dropout"] = 0.1
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="dropout"):
        train(CONFIG, train_data, checkpoints=tmp_path, resume=True)
