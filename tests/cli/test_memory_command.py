"""``qcompile memory``."""

import json
import sys

import pytest

from qcompile.cli import main

MODULE = """
import torch
import qcompile

def classifier():
    return torch.nn.Sequential(torch.nn.Linear(80, 160), torch.nn.ReLU(), torch.nn.Linear(160, 50))

def sparse():
    return qcompile.transform(
        torch.nn.Linear(8, 5000), sparse_output=qcompile.LSH(tables=2, negatives=10, active=4)
    )
"""


@pytest.fixture
def qcompile(tmp_path, monkeypatch, capfd):
    (tmp_path / "remembered.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "remembered", raising=False)

    def run(*arguments: str):
        capfd.readouterr()
        status = main(["memory", *arguments])
        return status, *capfd.readouterr()

    return run


def test_the_tables(qcompile) -> None:
    status, out, _ = qcompile("remembered:classifier", "--input", "30x80", "--optimizer", "adam")
    assert status == 0
    for text in ("saves for backward", "30×160", "12,960", "optimizer state", "predicted peak"):
        assert text in out


def test_predicted_beside_measured(qcompile, tmp_path) -> None:
    arguments = ("--input", "30x80", "--batch-size", "40", "--measure", "--timeline", "step.png")
    status, out, _ = qcompile("remembered:classifier", *arguments, "--json")
    assert status == 0
    found = json.loads(out)
    assert abs(found["error"]) < 0.05
    assert found["predicted"]["total"] == sum(found["predicted"]["breakdown"].values())
    assert found["measured"]["peak"] > 0
    assert (tmp_path / "step.png").is_file()


def test_a_sparse_output_layer_takes_a_target(qcompile) -> None:
    arguments = ("--input", "6x8", "--target", "6:int64", "--optimizer", "qcompile-adam", "--json")
    status, out, _ = qcompile("remembered:sparse", *arguments)
    assert status == 0
    assert json.loads(out)["predicted"]["breakdown"]["gradients"] < 4 * 5000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("remembered:classifier",), "--input"),
        (("model.onnx", "--input", "3x80"), "is not trained"),
        (("remembered:classifier", "--input", "3x80", "--timeline", "x.svg"), ".png"),
        (("remembered:classifier", "--input", "3x80", "--optimizer", "sdg"), "'sgd'"),
        (("remembered:missing", "--input", "3x80"), "missing"),
        (("remembered:classifier", "--input", "3x81"), "reduction dim"),
    ],
)
def test_errors(qcompile, arguments, told) -> None:
    status, out, err = qcompile(*arguments)
    assert status == 1
    assert told in err
    assert not out
