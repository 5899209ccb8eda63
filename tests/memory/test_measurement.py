"""Real steps in a process of their own, beside the prediction."""

import pytest
import torch
from torch import nn

import qcompile
from qcompile.errors import PassError
from qcompile.memory import memory_profile


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(inplace=True),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.BatchNorm2d(24),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 40, 1),
        nn.Conv2d(40, 32, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 9),
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [("quadratic", {}), ("float64", {"dtype": "float64"})],
)
def test_convolutions_are_predicted_to_a_twentieth(kind, options) -> None:
    model = convolutional()
    if kind == "quadratic":
        model = qcompile.transform(model, "Quadra")
    profile = memory_profile(
        model, torch.randn(9, 3, 40, 33), optimizer="adam", measure=True, **options
    )
    assert abs(profile.error) < 0.05
    assert profile.measured.phase == profile.predicted.phase
    assert profile.measured.before < profile.measured.peak
    assert max(profile.measured.totals) == profile.measured.peak
    assert set(profile.measured.phases) == {"forward", "loss", "backward", "optimizer"}


def test_a_sparse_output_layer() -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 5000))
    model = qcompile.transform(model, sparse_output=qcompile.LSH(tables=5))
    profile = memory_profile(
        model,
        torch.randn(16, 32),
        target=torch.randint(5000, (16,)),
        optimizer="qcompile-adam",
        measure=True,
    )
    assert abs(profile.error) < 0.15


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(40, 50)

    def forward(self, x):
        y = self.inner(x)
        return y if y.sum() > 0 else -y


def test_what_cannot_be_predicted_can_be_measured() -> None:
    profile = memory_profile(Branching(), torch.randn(30, 40), predict=False, measure=True)
    assert profile.predicted is None
    assert profile.error is None
    assert profile.peak == profile.measured.peak
    assert profile.peak > 4 * (2 * 40 * 50 + 30 * 40 + 2 * 30 * 50)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if self.layer.weight.device.type == "cpu":
            raise ValueError("no such day")
        return x


def test_a_failing_step_says_why() -> None:
    with pytest.raises(PassError, match="no such day"):
        memory_profile(Failing(), torch.randn(3, 4), predict=False, measure=True)


def test_what_cannot_be_pickled_says_so() -> None:
    model = nn.Linear(4, 4)
    model.function = lambda x: x
    with pytest.raises(PassError, match="cannot be pickled"):
        memory_profile(model, torch.randn(3, 4), predict=False, measure=True)
