"""A signal asks a run to save and end; a second one ends it."""

import os
import signal
import threading

import pytest
import torch

from qcompile.config import LSH
from qcompile.training import Observer, TrainConfig, checkpoint, train
from qcompile.training.interrupt import Interrupt

# 63 steps an epoch.
CONFIG = TrainConfig(
    hidden=(8,),
    sparse_output=LSH(tables=4, active=12, negatives=16, rehash=9),
    epochs=2,
    batch=32,
    save_point_steps=10,
)


class Signals(Observer):
    """Sends signals to this process when a step has been reached."""

    def __init__(self, step, *numbers):
        self.step, self.numbers, self.notes = step, list(numbers), []

    def stepped(self, snapshot):
        if snapshot.step >= self.step and self.numbers:
            os.kill(os.getpid(), self.numbers.pop(0))

    def noted(self, text):
        self.notes.append(text)


@pytest.fixture(autouse=True)
def every_step_is_reported(monkeypatch):
    monkeypatch.setattr("qcompile.training.meter._REPORT_EVERY", 0.0)


def same(one, two):
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_goes_on_to_a_save_point_and_resumes_to_the_same_bits(train_data, tmp_path, number):
    before = signal.getsignal(number)
    asked = Signals(43, number)
    stopped = train(CONFIG, train_data, checkpoints=tmp_path / "cut", observers=[asked])
    assert stopped.interrupted == number
    assert stopped.steps == 50
    assert stopped.checkpoint == checkpoint.find(tmp_path / "cut")
    assert asked.notes == ["ending in 7 steps, at a save point; a second signal ends at once"]
    assert signal.getsignal(number) is before
    resumed = train(CONFIG, train_data, checkpoints=tmp_path / "cut", resume=True)
    assert resumed.interrupted is None
    assert same(resumed, train(CONFIG, train_data, checkpoints=tmp_path / "whole"))


def test_a_save_point_too_far_away_is_not_waited_for(train_data, tmp_path, monkeypatch):
    monkeypatch.setattr("qcompile.training.trainer._PATIENCE", 0.0)
    asked = Signals(43, signal.SIGINT)
    stopped = train(CONFIG, train_data, checkpoints=tmp_path, observers=[asked])
    assert stopped.steps == 43
    assert "may differ in rounding" in asked.notes[0]
    resumed = train(CONFIG, train_data, checkpoints=tmp_path, resume=True)
    assert resumed.steps == 126


def test_the_second_ends_at_once_and_leaves_the_handlers_as_they_were(train_data, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    asked = Signals(65, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, train_data, checkpoints=tmp_path, observers=[asked])
    assert checkpoint.find(tmp_path).name.endswith("63")
    assert signal.getsignal(signal.SIGINT) is before


def test_without_checkpoints_a_run_ends_where_it_is(train_data):
    assert train(CONFIG, train_data, observers=[Signals(43, signal.SIGINT)]).steps == 43


def test_a_patient_one_takes_repetitions_for_the_first():
    with Interrupt(patient=True) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.signal == signal.SIGINT


def test_other_threads_train_without_handlers(train_data):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(CONFIG, train_data)))
    thread.start()
    thread.join()
    assert results[0].steps == 126
