"""The example on images learns, goes on, and draws."""

import json

import pytest

from qcompile.training import supervised


@pytest.fixture
def example(load_example):
    return load_example("classify_images")


def options(folder, *more):
    return ["--data", "digits", "--scale", "0.25", "--output", str(folder), *more]


def curve(folder):
    (newest,) = folder.glob("step-000000000003")
    return json.loads((newest / "state.json").read_text())["curve"]


def test_it_learns_draws_and_goes_on(example, tmp_path, capsys, monkeypatch):
    models = ("--model", "resnet14", "qresnet14", "--epochs", "3")
    assert example.main(options(tmp_path, *models)) == 0
    told = {name: curve(tmp_path / name) for name in ("resnet14", "qresnet14")}
    assert all(run[-1]["accuracy"] > 0.6 for run in told.values())
    for picture in ("curves.png", "predictions.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(supervised, "train_epoch", None)  # nothing is left to train
    capsys.readouterr()
    assert example.main(options(tmp_path, *models)) == 0
    assert f"{told['qresnet14'][-1]['accuracy']:.4f}" in capsys.readouterr().out
    assert example.main(options(tmp_path, *models[:3], "--epochs", "4")) == 1
    assert "another run" in capsys.readouterr().err


def test_a_folder_without_images_is_an_error(example, tmp_path, capsys):
    assert example.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "no image set" in capsys.readouterr().err
