"""``qcompile train`` from the outside: files in, a served model out, signals, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from scipy import sparse

import qcompile
from qcompile.cli import main
from qcompile.data.reader import read_dataset
from qcompile.data.synthetic import extreme_classification
from qcompile.training import checkpoint
from qcompile.training.serving import padded

SHAPE = {"features": 200, "labels": 90, "nonzeros": 15, "labels_per_row": 2, "popularity": 0.3}
SMALL = ["--hidden", "12", "--tables", "4", "--budget", "12", "--negatives", "16", "--lr", "0.02"]
SMALL += ["--batch", "32", "--threads", "1"]


def write_xmc(path: Path, features, labels) -> None:
    lines = [f"{features.shape[0]} {features.shape[1]} {labels.shape[1]}"]
    for row in range(features.shape[0]):
        ids = labels.indices[labels.indptr[row] : labels.indptr[row + 1]]
        span = slice(features.indptr[row], features.indptr[row + 1])
        pairs = zip(features.indices[span], features.data[span], strict=True)
        lines.append(f"{','.join(map(str, ids))} " + " ".join(f"{i}:{v:.6g}" for i, v in pairs))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_xmc(folder / "train.txt", *extreme_classification(800, **SHAPE))
    write_xmc(folder / "test.txt", *extreme_classification(60, **SHAPE, stream=1))
    return folder


@pytest.fixture(autouse=True)
def here(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QCOMPILE_CACHE", str(files / "cache"))


def command(*arguments, capfd):
    """Run in this process, which has imported torch already."""
    capfd.readouterr()
    try:
        status = main(["train", *map(str, arguments)])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    out, err = capfd.readouterr()
    return status, out, err


def start(*arguments) -> subprocess.Popen:
    line = [sys.executable, "-m", "qcompile", "train", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen, count: int = 1) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("checkpoints/step-*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "checkpoints").tensors


def test_a_run_ends_in_a_model_that_onnxruntime_serves(files, capfd):
    status, out, err = command(
        *(files / "train.txt", "--test", files / "test.txt", "--epochs", 6, "--top-k", 4),
        *(*SMALL, "--quadratic", "T4", "--json", "--tensorboard", "events", "-o", "out"),
        capfd=capfd,
    )
    assert status == 0, err
    summary = json.loads(out)
    assert summary["metrics"]["P@1"] > 0.2
    assert summary["metrics"] == summary["history"][-1]["metrics"]
    assert set(summary["metrics"]) == {
        f"{name}@{k}" for name in ("P", "nDCG", "PSP", "PSnDCG") for k in (1, 3, 5)
    }
    assert json.loads(Path("out/result.json").read_text()) == summary
    assert summary["export"]["max_difference"] < 1e-3
    assert list(Path("events").glob("events.*"))
    assert "epoch 6: P@1" in err
    test = read_dataset(files / "test.txt")
    ids, values = (tensor.numpy() for tensor in padded(test.batch(range(60)).features))
    for options in (qcompile.session_options(), None):
        session = onnxruntime.InferenceSession("out/model.onnx", options)
        scores, found = session.run(None, {"feature_ids": ids, "feature_values": values})
        assert scores.shape == found.shape == (60, 4)
        right = test.labels[np.arange(60), found[:, 0]].mean()
        assert right == pytest.approx(summary["metrics"]["P@1"], abs=1e-9)


def test_people_get_figures_and_the_next_command(files, capfd):
    status, out, err = command(files / "train.txt", *SMALL, "--epochs", 1, capfd=capfd)
    assert status == 0, err
    assert "examples a second" in out
    assert "next: qcompile inspect runs/train/model.onnx" in out
    assert "800 examples, 200 features, 90 labels" in err
    assert Path("runs/train/checkpoints").is_dir()
    status, out, err = command(
        *(files / "train.txt", *SMALL, "--epochs", 1, "--quiet", "--no-export", "-o", "two"),
        capfd=capfd,
    )
    assert (status, err) == (0, "")
    assert not Path("two/model.onnx").exists()


def test_killed_between_two_checkpoints_and_resumed_equals_uninterrupted(files, tmp_path):
    options = [files / "train.txt", *SMALL, "--epochs", 12, "--no-export", "--quiet"]
    whole = start(*options, "-o", "whole")
    cut = start(*options, "-o", "cut")
    wait_for_checkpoint(tmp_path / "cut", cut)
    os.kill(cut.pid, signal.SIGKILL)
    cut.communicate()
    assert whole.wait(timeout=120) == 0, whole.communicate()
    stopped = checkpoint.find(tmp_path / "cut/checkpoints").name
    assert stopped < checkpoint.find(tmp_path / "whole/checkpoints").name
    resumed = start("--resume", "cut", "--no-export", "--quiet")
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(files, tmp_path, number):
    options = [files / "train.txt", *SMALL, "--epochs", 2000, "--no-export"]
    process = start(*options, "-o", "out", "--save-point-steps", 7)
    wait_for_checkpoint(tmp_path / "out", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "go on with: qcompile train --resume out" in err
    state = checkpoint.load(tmp_path / "out/checkpoints").state["state"]
    assert 0 < state["step"] < 2000 * 25
    assert state["step"] == 25 * state["epoch"] + state["position"]
    assert json.loads((tmp_path / "out/result.json").read_text())["interrupted"] == number


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "DATA"),
        (["absent.txt"], "absent.txt"),
        (["garbage.txt"], "line 3"),
        (["empty.txt"], "empty.txt"),
        (["unlabelled.txt"], "none of 2 rows has a label"),
        (["vast.svm"], "2,147,483,647 labels take"),
        (["good.txt", "--test", "absent.txt"], "absent.txt"),
        (["good.txt", "--quadratic", "T1"], "n by n"),
        (["good.txt", "--quadratic", "T7"], "quadratic form"),
        (["good.txt", "--lr", "-1"], "lr"),
        (["good.txt", "--input-lr", "nan"], "input_lr"),
        (["good.txt", "--tables", "0"], "tables"),
        (["good.txt", "--test-labels", "x"], "--test"),
        (["codespell", "--test", "good.txt"], "codespell"),
        (["--resume", "nowhere"], "nowhere"),
        (["--resume"], "--resume DIR"),
        (["good.txt", "--resume", "a", "--output", "b"], "--output"),
    ],
)
def test_bad_input_is_one_clear_message(files, tmp_path, capfd, arguments, says):
    Path("good.txt").write_text("2 3 2\n0 0:1 2:.5\n1 1:2\n")
    Path("garbage.txt").write_text("2 3 2\n0 0:1 2:.5\n1 1:nan\n")
    Path("unlabelled.txt").write_text("2 3 2\n 0:1\n 1:2\n")
    Path("empty.txt").write_text("")
    Path("vast.svm").write_text("1 1:1\n2147483646 2:1\n")
    status, out, err = command(*arguments, "--json", capfd=capfd)
    assert status == 1, (out, err)
    assert says in err
    assert says in json.loads(out)["error"]["message"]
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/**/model.onnx"))


def test_resuming_with_other_options_names_them(files, capfd):
    common = [files / "train.txt", *SMALL, "--epochs", 1, "--no-export", "--quiet"]
    assert command(*common, "-o", "out", capfd=capfd)[0] == 0
    status, _, err = command("--resume", "out", "--negatives", 20, capfd=capfd)
    assert status == 1
    assert "sparse_output.negatives is 20, was 16" in err
    status, _, err = command(files / "test.txt", "--resume", "out", capfd=capfd)
    assert status == 1
    assert "rows: 60 now, 800 before" in err
    before = Path("out/run.json").read_text()
    status, _, err = command(*common, "--seed", 5, "-o", "out", capfd=capfd)
    assert status == 1
    assert "--resume" in err
    assert Path("out/run.json").read_text() == before
    status, out, err = command("--resume", "out", "--top-k", 2, "--json", capfd=capfd)
    assert status == 0, err
    assert json.loads(out)["config"]["top_k"] == 2


def test_without_tensorboard_it_says_what_to_install(files, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    status, _, err = command(files / "train.txt", "--tensorboard", "events", capfd=capfd)
    assert status == 1
    assert "pip install 'torch-qcompile[train]'" in err


def test_split_files_and_libsvm_train_too(files, capfd):
    features, labels = extreme_classification(40, **SHAPE)
    sparse.save_npz("X.trn.npz", features)
    sparse.save_npz("Y.trn.npz", labels)
    text = (files / "train.txt").read_text().partition("\n")[2]
    Path("train.svm").write_text(text)
    for data in ("X.trn.npz", "train.svm"):
        status, _, err = command(data, *SMALL, "--epochs", 1, "--no-export", capfd=capfd)
        assert status == 0, err


def test_the_exported_model_keeps_a_recall_shown_on_test_data(files, capfd):
    options = (files / "train.txt", *SMALL, "--epochs", 1, "--top-k", 3, "--recall", 0.8)
    status, out, err = command(
        *options, "--test", files / "test.txt", "--json", "-o", "out", capfd=capfd
    )
    assert status == 0, err
    (choice,) = json.loads(out)["export"]["calibration"].values()
    assert choice["promised"] == 0.8
    assert [recall["at"] for recall in choice["recall"]] == [1, 3]
    assert choice["recall"][-1]["mean"] >= 0.8
    status, _, err = command(*options, "-o", "two", capfd=capfd)
    assert (status, "--test" in err) == (1, True)
    assert not Path("two").exists()
