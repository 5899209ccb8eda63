"""The timeline picture."""

import importlib.util

import pytest
import torch
from torch import nn

from qcompile.errors import ConfigurationError
from qcompile.memory import memory_profile
from qcompile.memory.picture import draw


@pytest.fixture
def profile():
    model = nn.Sequential(nn.Linear(9, 8), nn.Tanh())
    return memory_profile(model, torch.randn(5, 9), optimizer="adam")


def test_a_picture_is_written(profile, tmp_path) -> None:
    path = draw(profile, tmp_path / "step.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in tmp_path.iterdir()] == ["step.png"]


def test_bad_paths_are_refused(profile, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"end its name in \.png"):
        draw(profile, tmp_path / "step.jpg")
    with pytest.raises(ConfigurationError, match="no folder"):
        draw(profile, tmp_path / "missing" / "step.png")


def test_without_matplotlib_it_says_what_to_install(profile, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("qcompile.memory.picture.find_spec", lambda name: None)
    assert importlib.util.find_spec("matplotlib")
    with pytest.raises(ConfigurationError, match="pip install matplotlib"):
        draw(profile, tmp_path / "step.png")


def test_the_timeline_is_one_step(profile) -> None:
    timeline = profile.timeline
    phases = list(dict.fromkeys(timeline.phases))
    assert phases == ["forward", "loss", "backward", "optimizer"]
    assert max(timeline.totals) == profile.peak
    # The step ends with what the next one begins with; only scores and loss are left over.
    assert 0 <= timeline.totals[-1] - timeline.totals[0] <= 2 * 4 * 5 * 8 + 200
