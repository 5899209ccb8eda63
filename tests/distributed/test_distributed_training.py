import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from qcompile import LSH
from qcompile.data.codespell import datasets
from qcompile.data.sparse_dataset import SparseDataset
from qcompile.data.synthetic import extreme_classification
from qcompile.distributed import collect
from qcompile.errors import CheckpointError
from qcompile.training import TrainConfig, checkpoint, tensor_files
from qcompile.training.trainer import Trainer

F, N = 300, 120
CONFIG = TrainConfig(
    hidden=(12,),
    epochs=3,
    batch=32,
    threads=1,
    lr=0.02,
    evaluate_every=0,
    sparse_output=LSH(active=10, negatives=20, tables=6, hashes=2, bucket=8, rehash=5),
)


def data(rows=300, stream=0):
    drawn = extreme_classification(
        rows, features=F, labels=N, nonzeros=12, labels_per_row=2, stream=stream
    )
    return SparseDataset(*(sparse.csr_matrix(matrix) for matrix in drawn))


def run(group, config, folder, resume=False):
    """Train; return the last loss, the figures, and on rank 0 all weights."""
    trainer = Trainer(config, data(), data(100, 1), folder=folder, resume=resume, group=group)
    result = trainer.run()
    collect(result.model, group)
    weights = dict(result.model.state_dict()) if group.rank == 0 else {}
    weights.pop("output._extra_state", None)
    return result.history[-1].loss, result.metrics, weights, result.bytes_per_step


def same(found, expected):
    return all(torch.equal(found[name], value) for name, value in expected.items())


def test_two_ranks_learn_as_much_as_one(spawn):
    config = replace(CONFIG, epochs=6, batch=64, lr=0.04)
    (one,), (two, other) = (spawn(n, run, config, None) for n in (1, 2))
    assert two[:2] == other[:2]
    assert one[3] == 0 < two[3]
    assert one[1]["P@1"] > 0.2
    # 100 examples, five standard deviations of the difference.
    assert abs(two[1]["P@1"] - one[1]["P@1"]) < 5 * (2 * 0.25 / 100) ** 0.5
    assert two[0] == pytest.approx(one[0], rel=0.1)


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_a_resumed_run_equals_one_that_went_on(spawn, tmp_path, storage):
    config = replace(CONFIG, storage=storage)
    whole = spawn(2, run, config, tmp_path / "whole")
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", again)
    shutil.rmtree(sorted(again.iterdir())[-1])
    resumed = spawn(2, run, config, again, True)
    assert resumed[0][:2] == whole[0][:2]
    assert same(resumed[0][2], whole[0][2])


def loaded(group, folder):
    trainer = Trainer(CONFIG, data(), folder=folder, resume=True, group=group)
    output = trainer.model.output
    moments = trainer._optimizer.state_dict()["state"][2]
    return output.weight.detach(), output.bias.detach(), moments


@pytest.mark.parametrize(("written", "read"), [(1, 3), (2, 1), (3, 2), (2, 3)])
def test_what_some_ranks_write_others_read(spawn, tmp_path, written, read):
    spawn(written, run, CONFIG, tmp_path)
    before = spawn(written, loaded, tmp_path)
    after = spawn(read, loaded, tmp_path)
    for which in (0, 1):
        assert torch.equal(*(torch.cat([rank[which] for rank in run]) for run in (before, after)))
    for name in ("exp_avg", "exp_avg_sq"):
        old, new = (torch.cat([rank[2][name] for rank in run]) for run in (before, after))
        assert old.shape == (N, 12) and old.abs().max() > 0
        assert torch.equal(old, new)


def test_a_run_goes_on_with_another_number_of_ranks(spawn, tmp_path):
    spawn(2, run, CONFIG, tmp_path)
    shutil.rmtree(sorted(tmp_path.iterdir())[-1])
    (three, *_), steps = spawn(3, run, CONFIG, tmp_path, True), sorted(tmp_path.iterdir())
    assert np.isfinite(three[0])
    names = {path.name for path in steps[-1].glob("*.safetensors")}
    assert names == {tensor_files.file_name(rank, 3) for rank in range(3)}


def spoiled(group, folder, how):
    """Save step 1, then fail on rank 1 while step 2 is written."""
    rows = {"shard": torch.full((2, 3), float(group.rank))}
    about = {"divided": {"shard": 2 * group.size}, "group": group}
    checkpoint.save(folder, 1, {"all": torch.ones(2), **rows}, {"epoch": 1}, **about)
    write = checkpoint.write_tensors

    def fail(path, tensors):
        write(path, tensors)
        if group.rank == 1:
            if how == "killed":
                os._exit(9)
            raise OSError(28, "No space left on device")

    checkpoint.write_tensors = fail
    try:
        checkpoint.save(folder, 2, {"all": torch.ones(2), **rows}, {"epoch": 2}, **about)
    finally:
        checkpoint.write_tensors = write


@pytest.mark.parametrize("how", ["killed", "full"])
def test_what_fails_on_one_rank_leaves_the_older_checkpoint(spawn, tmp_path, how):
    outcomes = spawn.outcomes(3, spoiled, tmp_path, how)
    assert not any(fine for fine, _ in outcomes)
    if how == "full":
        assert all(message.startswith("CheckpointError") for _, message in outcomes)
        assert "rank 1 could not do its part" in outcomes[0][1]
        assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001"]
    found = checkpoint.load(tmp_path)
    assert found.state["epoch"] == 1
    assert found.tensors["shard"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def sharded_checkpoint(folder):
    """Write what two ranks would, without them."""
    path = checkpoint.save(folder, 1, {"rows": torch.arange(5.0)}, {}, divided={"rows": 5})
    state = (path / "state.json").read_text()
    (path / "state.json").write_text(state.replace('"rows": 5', '"rows": 6'))
    return path


def test_a_file_with_other_rows_than_it_should_have_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="rows has the shape"):
        checkpoint.load(sharded_checkpoint(tmp_path))


def mismatched(group, rows):
    Trainer(CONFIG, data(rows[group.rank]), group=group)


def test_ranks_with_different_data_do_not_start(spawn):
    for fine, message in spawn.outcomes(2, mismatched, [300, 299]):
        assert not fine
        assert "differ in training data" in message


def interrupted(group, folder):
    """Rank 1 alone gets the signal, in the middle of an epoch."""
    trainer = Trainer(CONFIG, data(), folder=folder, group=group)
    step, taken = trainer._step, []

    def signalled(*batch):
        taken.append(step(*batch))
        if group.rank == 1 and len(taken) == 4:
            os.kill(os.getpid(), 2)

    trainer._step = signalled
    trainer._waits = lambda steps: False
    result = trainer.run()
    return result.steps, result.interrupted, result.checkpoint.name


def test_a_signal_to_one_rank_stops_and_saves_all(spawn, tmp_path):
    first, second = spawn(2, interrupted, tmp_path)
    assert first == second == (5, 2, "step-000000000005")


def test_torchrun_trains_and_exports(tmp_path):
    examples = data()
    for name, matrix in (("x", examples.features), ("y", examples.labels)):
        sparse.save_npz(tmp_path / f"{name}.npz", matrix)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = ["-m", "qcompile", "train", "x.npz", "--labels", "y.npz", "--epochs", "1"]
    options = ["--hidden", "8", "-o", "run", "--quiet"]
    done = subprocess.run(
        [sys.executable, *launch, *train, *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "bytes a rank sends a step" in done.stdout
    assert (Path(tmp_path) / "run" / "model.onnx").is_file()


def speller(group):
    """Learn a quarter of the codespell task."""
    train, test = datasets()
    config = TrainConfig(
        hidden=(32,),
        epochs=3,
        batch=500,
        threads=1,
        lr=0.04,
        evaluate_every=0,
        sparse_output=LSH(active=64, negatives=512, tables=16),
    )
    quarter = train.subset(range(len(train) // 4))
    return Trainer(config, quarter, test, group=group).run().metrics["P@1"], len(test)


def test_two_ranks_reach_the_precision_of_one_on_codespell(spawn):
    ((one, examples),) = spawn(1, speller)
    (two, _), (again, _) = spawn(2, speller)
    assert two == again
    assert one > 0.08
    # Five standard deviations of the difference of two shares.
    assert abs(two - one) < 5 * (2 * one * (1 - one) / examples) ** 0.5
