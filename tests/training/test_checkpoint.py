"""Checkpoints are whole or do not count."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qcompile.errors import CheckpointError
from qcompile.training import checkpoint

TENSORS = {
    "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.tensor([[1.5, -2]], dtype=torch.bfloat16),
    "rest": torch.tensor([-3], dtype=torch.int16),
    "step": torch.tensor(7.0),
    "none": torch.zeros(0, 4),
    "view": torch.arange(12, dtype=torch.int64).reshape(3, 4).t(),
}


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path / "new", 12, TENSORS, {"epoch": 3})
    assert path.name == "step-000000000012"
    found = checkpoint.load(tmp_path / "new")
    assert found.path == path
    assert found.state["epoch"] == 3
    assert set(found.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_the_file_is_one_that_safetensors_reads(tmp_path):
    path = checkpoint.save(tmp_path, 1, TENSORS, {})
    assert torch.equal(load_file(path / "tensors.safetensors")["view"], TENSORS["view"])


def test_the_newest_two_are_kept(tmp_path):
    for step in (1, 20, 3):
        checkpoint.save(tmp_path, step, TENSORS, {"epoch": step})
    checkpoint.prune(tmp_path)
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["03", "20"]
    assert checkpoint.load(tmp_path).state["epoch"] == 20


@pytest.mark.parametrize("damage", ["no state", "no tensors", "half the tensors", "half the state"])
def test_one_that_is_not_whole_is_passed_over(tmp_path, damage):
    checkpoint.save(tmp_path, 1, TENSORS, {"epoch": 1})
    broken = checkpoint.save(tmp_path, 2, TENSORS, {"epoch": 2})
    tensors, state = broken / "tensors.safetensors", broken / "state.json"
    if damage == "no state":
        state.unlink()
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "half the tensors":
        tensors.write_bytes(tensors.read_bytes()[:-9])
    else:
        state.write_bytes(state.read_bytes()[:-9])
    assert checkpoint.load(tmp_path).state["epoch"] == 1
    # A run that comes to this step again replaces it.
    checkpoint.save(tmp_path, 2, TENSORS, {"epoch": 22})
    assert checkpoint.load(tmp_path).state["epoch"] == 22


def test_a_folder_that_a_killed_run_left_half_written_is_never_read_and_removed(tmp_path):
    checkpoint.save(tmp_path, 1, TENSORS, {"epoch": 1})
    left = tmp_path / ".step-000000000009.4711.partial"
    checkpoint.save(tmp_path, 9, TENSORS, {"epoch": 9}).rename(left)
    assert checkpoint.load(tmp_path).state["epoch"] == 1
    checkpoint.save(tmp_path, 2, TENSORS, {"epoch": 2})
    assert not left.exists()


def test_a_full_disk_leaves_the_earlier_ones(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, TENSORS, {"epoch": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"step-000000000002.*No space left"):
            checkpoint.save(tmp_path, 2, TENSORS, {"epoch": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001"]
    assert checkpoint.load(tmp_path).state["epoch"] == 1


def test_the_same_step_is_not_written_twice(tmp_path):
    path = checkpoint.save(tmp_path, 1, TENSORS, {"epoch": 1})
    before = (path / "state.json").stat().st_mtime_ns
    assert checkpoint.save(tmp_path, 1, TENSORS, {"epoch": 1}) == path
    assert (path / "state.json").stat().st_mtime_ns == before


def test_nothing_to_load_is_said(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="no whole checkpoint"):
            checkpoint.load(folder)


def test_another_format_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 1, TENSORS, {})
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(tmp_path)


def test_damage_of_the_right_size_is_an_error(tmp_path):
    path = checkpoint.save(tmp_path, 1, TENSORS, {}) / "tensors.safetensors"
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[:8] = 255
    path.write_bytes(content.tobytes())
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(tmp_path)
