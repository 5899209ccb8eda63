"""The example on generating learns, goes on, and draws."""

import json
import re

import pytest

from qcompile.training import judging
from qcompile.training.adversarial import AdversarialTraining


@pytest.fixture
def example(load_example):
    return load_example("generate_images")


def test_it_learns_draws_and_goes_on(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(judging, "_SEEN", 3000)
    options = ["--data", "digits", "--scale", "0.0625", "--output", str(tmp_path), "--epochs", "2"]
    assert example.main([*options, "--form", "Quadra"]) == 0
    state = json.loads((tmp_path / "Quadra-0.0625/step-000000000002/state.json").read_text())
    figures = {"seconds", "discriminator loss", "score"}
    assert [set(epoch) for epoch in state["curve"]] == [figures] * 2
    for picture in ("Quadra-0.0625.png", "scores.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert f"{state['curve'][-1]['score']:.3f}" in told
    floor = float(re.search(r"training images .*?([\d.]+)", told).group(1))
    assert 0 < floor < state["curve"][-1]["score"]
    monkeypatch.setattr(AdversarialTraining, "_step", None)  # nothing is left to train
    assert example.main([*options, "--form", "Quadra"]) == 0


def test_a_form_that_is_unknown_is_an_error(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(judging, "_SEEN", 1)
    options = ["--data", "digits", "--output", str(tmp_path), "--form", "Quadro", "--epochs", "1"]
    assert example.main(options) == 1
    assert "'Quadra'" in capsys.readouterr().err
