"""Epochs that stop and go on to the same bits; what a checkpoint must agree with."""

import json

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from qcompile.data.images import load
from qcompile.errors import CheckpointError, ConfigurationError
from qcompile.models import Discriminator, Generator
from qcompile.training.adversarial import AdversarialTraining
from qcompile.training.epochs import Epochs
from qcompile.training.judging import FrechetJudge
from qcompile.training.supervised import train_epoch


class Run:
    """A small training with everything that has a state."""

    def __init__(self, folder, *, epochs=5, width=4, stop=None):
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.05, betas=(0.5, 0.9))
        self.schedule = CosineAnnealingLR(self.optimizer, 3 * epochs)
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        self.epochs = Epochs("small", folder, parts, {"width": width}, epochs)
        self.stop = stop

    def train(self):
        def epoch(told):
            if len(self.epochs.curve) == self.stop:
                raise KeyboardInterrupt
            batches = [(x, x.sum(1, keepdim=True)) for x in torch.randn(3, 8, 3)]
            loss = train_epoch(
                self.model,
                batches,
                nn.functional.mse_loss,
                self.optimizer,
                self.schedule,
                clip=1.0,
                told=told,
            )
            return {"loss": loss}

        self.epochs.run(epoch, 3)
        return self.model.state_dict()


def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path):
    whole = Run(tmp_path / "whole").train()
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "parts", stop=3).train()
    second = Run(tmp_path / "parts")
    assert len(second.epochs.curve) == 3
    resumed = second.train()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    first = Run(tmp_path / "whole")
    assert first.epochs.curve == second.epochs.curve
    assert sorted(path.name for path in (tmp_path / "parts/small").iterdir()) == [
        "step-000000000004",
        "step-000000000005",
    ]


def test_checkpoints_of_something_else_are_refused(tmp_path):
    Run(tmp_path, epochs=1).train()
    with pytest.raises(CheckpointError, match="another run"):
        Run(tmp_path, epochs=2)
    with pytest.raises(CheckpointError, match="another run"):
        Run(tmp_path, epochs=1, width=5)
    path = next((tmp_path / "small").iterdir()) / "state.json"
    state = json.loads(path.read_text())
    del state["parts"]["model"]["0.weight"]
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="not of this network"):
        Run(tmp_path, epochs=1)


def test_a_first_checkpoint_that_was_cut_off_is_begun_anew(tmp_path):
    whole = Run(tmp_path / "whole", epochs=1).train()
    (tmp_path / "cut/small/.step-000000000001.7.partial").mkdir(parents=True)
    (tmp_path / "cut/small/step-000000000001").mkdir()
    again = Run(tmp_path / "cut", epochs=1).train()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_no_epochs_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="at least 1"):
        Run(tmp_path, epochs=0)


def adversaries(folder, epochs, judge=lambda sample: {}, count=130):
    torch.manual_seed(0)
    images = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    networks = Generator(4, scale=0.03, form="T4"), Discriminator(scale=0.03, form="T4")
    return AdversarialTraining("pair", *networks, images, epochs, folder, judge)


def test_adversaries_go_on_to_the_same_bits_and_the_average_follows(tmp_path):
    def stop_at_the_second(sample):
        seen.append(sample(3))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {"mean": float(seen[-1].mean())}

    seen = []
    with pytest.raises(KeyboardInterrupt):
        adversaries(tmp_path / "parts", 2, stop_at_the_second).train()
    assert seen[0].shape == (3, 1, 32, 32)
    resumed, whole = adversaries(tmp_path / "parts", 2), adversaries(tmp_path / "whole", 2)
    resumed.train()
    whole.train()
    for part in ("generator", "discriminator", "average"):
        one, other = getattr(resumed, part).state_dict(), getattr(whole, part).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(resumed.sample(3), seen[1])
    average = dict(whole.average.module.named_parameters())
    for name, value in whole.generator.named_parameters():
        assert not torch.equal(average[name], value) or value.dim() == 1


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="63 images"):
        adversaries(tmp_path, 1, count=63)


def test_a_judge_knows_its_images_from_noise(tmp_path, monkeypatch):
    monkeypatch.setattr("qcompile.training.judging._SEEN", 3000)
    judge = FrechetJudge(load("digits"), 8, tmp_path)
    judge.train()
    assert judge.images.shape == (1437, 1, 8, 8)
    assert judge.accuracy > 0.5
    noise = judge(lambda count: torch.rand(count, 1, 8, 8) * 2 - 1)["score"]
    assert 0 <= judge.floor() < noise / 5
