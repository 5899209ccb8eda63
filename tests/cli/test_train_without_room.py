"""Whatever the disk has no room for, the message says what to do and nothing that is whole is lost.

A limit on the size of files stands for the full disk: writing past it fails in the same way.
``/dev/full`` stands for the disk of the event files alone.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompile.training import checkpoint

FULL_ONCE_DATA_ARE_READ = """
import sys
from pathlib import Path
from qcompile.cli import main
from qcompile.training import sources

load = sources.load_sources

def load_then_fill(*arguments):
    for path in Path("events").iterdir():
        path.unlink()
        path.symlink_to("/dev/full")
    return load(*arguments)

sources.load_sources = load_then_fill
sys.exit(main())
"""
SMALL = ["--hidden", "12", "--mode", "sampled", "--negatives", "16", "--threads", "1", "--quiet"]


@pytest.fixture
def data(tmp_path) -> Path:
    random = np.random.default_rng(0)
    rows = [np.sort(random.choice(300, 8, replace=False)) for _ in range(2000)]
    lines = [f"{random.integers(200)} " + " ".join(f"{i}:1" for i in row) for row in rows]
    path = tmp_path / "data.txt"
    path.write_text("\n".join(["2000 300 200", *lines]) + "\n")
    return path


def train(folder: Path, *arguments, most=None, program=("-m", "qcompile")) -> tuple[int, str]:
    """Run the command with files of at most so many bytes; returns its status and errors."""

    def limit() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    line = [sys.executable, *program, "train", *map(str, arguments)]
    done = subprocess.run(
        line,
        cwd=folder,
        env={**os.environ, "QCOMPILE_CACHE": str(folder / "cache")},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_no_room_for_the_cache(data, tmp_path):
    status, err = train(tmp_path, data, *SMALL, most=20_000)
    assert status == 1
    assert "the cache cannot be written: File too large. Free space, or name another folder" in err
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_no_room_for_a_checkpoint_then_room_again(data, tmp_path):
    common = [data, *SMALL, "--no-export"]
    assert train(tmp_path, *common, "--epochs", 1, "-o", "first")[0] == 0
    size = (checkpoint.find(tmp_path / "first/checkpoints") / "tensors.safetensors").stat().st_size
    status, err = train(tmp_path, *common, "--epochs", 2, "-o", "out", most=size - 100)
    assert status == 1
    assert "cannot be written: File too large. Earlier checkpoints are as they were" in err
    assert list((tmp_path / "out/checkpoints").iterdir()) == []
    assert train(tmp_path, *common, "--epochs", 2, "-o", "out")[0] == 0
    assert checkpoint.find(tmp_path / "out/checkpoints").name == "step-000000000016"


def test_no_room_for_the_model_that_a_resumed_run_then_writes(data, tmp_path):
    common = [data, *SMALL, "--epochs", 1]
    assert train(tmp_path, *common, "-o", "whole")[0] == 0
    size = (tmp_path / "whole/model.onnx").stat().st_size
    assert train(tmp_path, *common, "--no-export", "-o", "out")[0] == 0
    before = checkpoint.load(tmp_path / "out/checkpoints").tensors
    status, err = train(tmp_path, "--resume", "out", "--quiet", most=size - 100)
    assert status == 1
    assert "model.onnx: cannot be written: File too large" in err
    assert "The trained network is in out/checkpoints/step-000000000008" in err
    assert not list((tmp_path / "out").glob("*model*"))
    assert train(tmp_path, "--resume", "out", "--quiet")[0] == 0
    assert (tmp_path / "out/model.onnx").stat().st_size == size
    after = checkpoint.load(tmp_path / "out/checkpoints").tensors
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_room_for_the_first_event_ends_before_data_are_read(data, tmp_path):
    status, err = train(tmp_path, data, *SMALL, "--tensorboard", "events", most=10)
    assert status == 1
    assert "cannot be written: File too large. Free space, name another folder, or leave out" in err
    assert "events/events.out.tfevents." in err
    assert not (tmp_path / "runs").exists()


def test_no_room_for_later_events_is_said_once_and_costs_nothing_else(data, tmp_path):
    common = [data, *SMALL, "--test", data, "--epochs", 2]
    assert train(tmp_path, *common, "-o", "whole") == (0, "")
    status, err = train(
        *(tmp_path, *common, "--tensorboard", "events", "-o", "out"),
        program=("-c", FULL_ONCE_DATA_ARE_READ),
    )
    assert status == 0
    assert len(err.splitlines()) == 1
    assert err.startswith("qcompile train: warning: events/events.out.tfevents.")
    assert "cannot be written: No space left on device. Training goes on" in err
    whole, out = (checkpoint.load(tmp_path / name / "checkpoints") for name in ("whole", "out"))
    assert all(torch.equal(whole.tensors[name], out.tensors[name]) for name in whole.tensors)
    assert (tmp_path / "out/model.onnx").exists()
