"""The benchmark of accuracy on few images: it trains, tells, keeps and goes on."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import quadratic_accuracy
from accuracy import conversion, learning, report
from accuracy.fine_tuning import tail, trunk
from accuracy.keeping import Keeper
from accuracy.learning import Recipe, Row, accuracy, learn
from accuracy.networks import NETWORKS, PAIRS
from accuracy.tasks import task

from qcompile.data.images import load
from qcompile.errors import CheckpointError

NOWHERE = Keeper(None, {})


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def run(monkeypatch):
    def main(*arguments):
        arguments = ("--data", "digits", "--quick", *map(str, arguments))
        monkeypatch.setattr(sys, "argv", ["quadratic_accuracy.py", *arguments])
        return quadratic_accuracy.main()

    return main


def test_quadratic_networks_have_fewer_parameters():
    for pair in PAIRS:
        quadratic, first_order = (learning.parameters(NETWORKS[name].make(0)) for name in pair)
        assert 0.9 * first_order < quadratic < first_order


def test_images_get_margins_or_are_averaged(digits):
    large, small = (task(digits, examples=5, tests=3, side=side, least=0.0) for side in (11, 4))
    assert large.inputs.shape == (5, 1, 11, 11)
    assert small.test_inputs.shape == (3, 1, 4, 4)
    image = torch.from_numpy(digits.train_images[0, 0] / 16)
    torch.testing.assert_close(large.inputs[0, 0, 1:9, 1:9], image.float())
    assert large.inputs[:, :, [0, 9, 10]].abs().max() == 0
    torch.testing.assert_close(small.inputs[0, 0, 0, 0], image[:2, :2].mean().float())


def test_parts_are_told_kept_and_not_run_again(run, tmp_path, monkeypatch):
    options = ("--parts", "forms", "search", "--folder", tmp_path / "kept")
    assert run(*options, "--json", tmp_path / "a.json", "--picture", tmp_path / "a.png") == 0
    told = json.loads((tmp_path / "a.json").read_text())
    runs = {row["network"]: row for row in told["rows"] if row["part"] == "forms"}
    assert len(runs) == 10
    assert runs["Quadra"]["parameters"] > runs["T4"]["parameters"] > runs["T2"]["parameters"]
    assert runs["first-order"]["accuracy"] > 0.3
    actions = [row["action"] for row in told["rows"] if row["part"] == "search"]
    assert actions[-2:] == ["tune", "first-order"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(learning, "learn", None)  # nothing is left to train
    assert run(*options, "--json", tmp_path / "b.json") == 0
    assert json.loads((tmp_path / "b.json").read_text())["rows"] == told["rows"]


def test_a_folder_of_other_settings_is_refused(tmp_path):
    Keeper(tmp_path, {"examples": 5})
    with pytest.raises(CheckpointError, match="other settings"):
        Keeper(tmp_path, {"examples": 6})


def test_a_stopped_run_goes_on_to_the_same_weights(digits, tmp_path, monkeypatch):
    seen = task(digits, examples=300, tests=99, side=32)
    recipe = Recipe(2, batch=64)
    whole, parted = (NETWORKS["QVGG-7"].make(1) for _ in range(2))
    learn(whole, seen, recipe, 1, NOWHERE, "run")
    first = learning._epoch

    def stopped(*arguments):
        if arguments[-1] == 1001:
            raise KeyboardInterrupt
        return first(*arguments)

    monkeypatch.setattr(learning, "_epoch", stopped)
    keep = Keeper(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        learn(parted, seen, recipe, 1, keep, "run")
    monkeypatch.setattr(learning, "_epoch", first)
    again = NETWORKS["QVGG-7"].make(5)
    learn(again, seen, recipe, 1, keep, "run")
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )
    assert accuracy(whole, seen) == accuracy(again, seen)


def test_what_is_tuned_starts_at_one_function(digits):
    seen = trunk(task(digits, examples=3, tests=2, side=28), NOWHERE)
    assert seen.inputs.shape == (3, 192, 2, 2)
    before, *converted = (tail(form, 3).eval() for form in ("first-order", "Quadra", "T4"))
    for model in converted:
        assert torch.equal(model(seen.inputs), before(seen.inputs))


def test_bars_compare_means_and_parameters():
    def row(part, network, parameters, accuracy):
        return Row(part, network, 0, parameters, 1, accuracy, 1.0)

    rows = [row("networks", name, 10, 0.9) for pair in PAIRS for name in pair]
    rows += [
        row("forms", "first-order", 9, 0.9),
        row("forms", "T2", 9, 0.88),
        row("forms", "T4", 9, 0.891),
    ]
    found = {bar["name"]: bar["ok"] for bar in report.bars(rows)}
    assert list(found.values()) == [False, False, False, True]  # as many parameters are not fewer
    wrong = conversion.Conversion("conversion", "Quadra", 50, 1, 3, 0.0, 1e-7, [1, 2])
    assert [bar["ok"] for bar in report.bars([wrong])] == [False]
