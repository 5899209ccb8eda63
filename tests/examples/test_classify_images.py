"""The example on images learns, goes on, and draws."""

import importlib.util
import json
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "examples" / "classify_images.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("classify_images", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(folder, *more):
    return ["--data", "digits", "--scale", "0.25", "--output", str(folder), *more]


def test_it_learns_draws_and_goes_on(example, tmp_path, capsys, monkeypatch):
    models = ("--model", "resnet14", "qresnet14", "--epochs", "3")
    assert example.main(options(tmp_path, *models)) == 0
    told = json.loads((tmp_path / "curves.json").read_text())
    assert set(told) == {"resnet14", "qresnet14"}
    assert all(run["curve"][-1]["accuracy"] > 0.6 for run in told.values())
    for picture in ("curves.png", "predictions.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(example, "clip_gradients", None)  # nothing is left to train
    assert example.main(options(tmp_path, *models)) == 0
    assert json.loads((tmp_path / "curves.json").read_text()) == told
    capsys.readouterr()
    assert example.main(options(tmp_path, *models[:3], "--epochs", "4")) == 1
    assert "another run" in capsys.readouterr().err


def test_a_folder_without_images_is_an_error(example, tmp_path, capsys):
    assert example.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "no image set" in capsys.readouterr().err
