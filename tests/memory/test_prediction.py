"""What is predicted of a training step, against counts by hand and torch's own tracker."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

import qcompile
from qcompile.config import OPTIMIZERS
from qcompile.errors import ConfigurationError, PassError, TraceError
from qcompile.memory import memory_profile

BATCH, WIDTH, CLASSES = 33, 70, 11


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 90), nn.ReLU(), nn.Linear(90, CLASSES))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1),
        nn.BatchNorm2d(10),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(10 * 5 * 4, CLASSES),
    )


def weights(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def test_a_perceptron_takes_what_a_count_by_hand_gives() -> None:
    model = perceptron()
    peak = memory_profile(model, torch.randn(BATCH, WIDTH)).predicted
    assert peak.breakdown["parameters"] == weights(model)
    assert peak.breakdown["inputs"] == 4 * BATCH * WIDTH
    assert peak.breakdown["optimizer state"] == peak.breakdown["buffers"] == 0
    assert sum(peak.breakdown.values()) == peak.total
    # When the first layer's gradients are made, the gradient of its result is there, and the step
    # itself holds the scores. Of the loss its value and the gradient of that are left.
    hidden, scores = 4 * BATCH * 90, 4 * BATCH * CLASSES
    by_hand = 2 * weights(model) + 4 * BATCH * WIDTH + hidden + scores
    assert (peak.phase, peak.layer) == ("backward", "0")
    assert by_hand <= peak.total <= by_hand + 8


def test_what_layers_save_is_counted_once() -> None:
    profile = memory_profile(perceptron(), torch.randn(BATCH, WIDTH))
    saved = {layer.name: layer.saved_bytes for layer in profile.layers}
    # The result of ReLU is saved by it and by the layer behind; the input stays anyway.
    assert saved["0"] == saved["2"] == 0
    assert saved["1"] == 4 * BATCH * 90
    assert saved["(loss)"] >= 4 * BATCH * CLASSES  # log-probabilities
    assert profile.saved == sum(saved.values())
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1)
    shapes = {layer.name: layer.output_shape for layer in profile.layers}
    assert shapes["0"] == (BATCH, 90)
    assert shapes["2"] == (BATCH, CLASSES)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_of_every_optimiser(optimizer) -> None:
    model = perceptron()
    peak = memory_profile(model, torch.randn(4, WIDTH), optimizer=optimizer).predicted
    averages = 2 if "adam" in optimizer else 1 if "momentum" in optimizer else 0
    counts_steps = optimizer not in ("sgd", "momentum")
    counters = 4 * len(list(model.parameters())) if counts_steps else 0
    assert peak.breakdown["optimizer state"] == averages * weights(model) + counters


def test_an_optimiser_of_ones_own() -> None:
    model = perceptron()
    profile = memory_profile(
        model, torch.randn(4, WIDTH), optimizer=lambda p: torch.optim.RMSprop(p, momentum=0.5)
    )
    assert profile.predicted.breakdown["optimizer state"] >= 2 * weights(model)


@pytest.mark.parametrize("make", [perceptron, convolutional])
def test_agrees_with_torchs_own_tracker(make, monkeypatch) -> None:
    # Theirs knows no workspace of convolutions.
    monkeypatch.setattr("qcompile.memory.tracker.height", lambda *_: 0)
    shape = (BATCH, WIDTH) if make is perceptron else (BATCH, 3, 10, 8)
    ours = memory_profile(make(), torch.randn(shape), optimizer="momentum")
    assert ours.peak == pytest.approx(tracked(make, shape), rel=0.01)


def tracked(make, shape) -> int:
    with FakeTensorMode():
        model, x = make(), torch.randn(shape)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, x)
        with tracker:
            for _ in range(2):
                optimizer.zero_grad()
                output = model(x)
                labels = torch.zeros(shape[0], dtype=torch.int64)
                F.cross_entropy(output, labels).backward()
                optimizer.step()
                peak = tracker.get_tracker_snapshot("peak")
                tracker.reset_mod_stats()
        return next(iter(peak.values()))["Total"]


def test_the_model_stays_as_it_is() -> None:
    model = convolutional().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory_profile(model, torch.randn(2, 3, 10, 8), optimizer="adam")
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_memory_is_enough() -> None:
    with torch.device("meta"):
        model = convolutional()
    x = torch.randn(5, 3, 10, 8)
    assert memory_profile(model, x).peak == memory_profile(convolutional(), x).peak


def test_batch_size() -> None:
    model, x = convolutional(), torch.randn(2, 3, 10, 8)
    wide = memory_profile(model, torch.randn(7, 3, 10, 8))
    assert memory_profile(model, x, batch_size=7).peak == wide.peak
    with pytest.raises(ConfigurationError, match="batch_size"):
        memory_profile(model, x, batch_size=0)


def test_half_precision_halves_and_autocast_keeps_the_weights() -> None:
    model, x = perceptron(), torch.randn(BATCH, WIDTH)
    full = memory_profile(model, x).predicted.breakdown
    half = memory_profile(model, x, dtype=torch.bfloat16).predicted.breakdown
    mixed = memory_profile(model, x, autocast="bfloat16")
    assert (half["parameters"], half["inputs"]) == (full["parameters"] / 2, full["inputs"] / 2)
    assert mixed.predicted.breakdown["parameters"] == full["parameters"]
    saved = {layer.name: layer.saved_bytes for layer in mixed.layers}
    assert saved["1"] == 2 * BATCH * 90


class Checkpointed(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
            for _ in range(4)
        )
        self.recompute = recompute

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


def test_recomputation_is_followed() -> None:
    x = torch.randn(500, WIDTH)
    plain, recomputed = (memory_profile(Checkpointed(r), x, loss="sum") for r in (False, True))
    each = 4 * 500 * WIDTH
    # Without, the results of eight layers of tanh; with it, the inputs of four blocks.
    assert plain.saved == 8 * each
    assert recomputed.peak < plain.peak - 2 * each
    assert {layer.name for layer in recomputed.layers} >= {"blocks.3.0"}


class Returns(nn.Module):
    def __init__(self, what) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(WIDTH, 3), what

    def forward(self, x):
        return self.what(self.layer(x))


def test_losses() -> None:
    x = torch.randn(4, WIDTH)
    for what in (
        lambda y: {"loss": y.sum()},
        lambda y: y.sum(),
        lambda y: (y, None),
        lambda y: y[:, :, None],
    ):
        assert memory_profile(Returns(what), x).peak > 0
    labels = torch.zeros(4, dtype=torch.int64)
    own = memory_profile(Returns(lambda y: y), x, target=labels, loss=F.cross_entropy)
    assert own.step["loss"] == "cross_entropy"
    with pytest.raises(PassError, match="loss="):
        memory_profile(Returns(lambda y: None), x)


def test_a_sparse_output_layer() -> None:
    neurons, width = 5000, 24
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, neurons))
    model = qcompile.transform(model, sparse_output=qcompile.LSH(negatives=40, active=8))
    x, labels = torch.randn(6, 8), torch.randint(neurons, (6,))
    profile = memory_profile(model, x, target=labels, optimizer="qcompile-adam")
    at = profile.predicted.breakdown
    assert at["optimizer state"] >= 2 * weights(model)
    # Of 5000 rows at most 6 · 8 + 40 get a gradient.
    assert at["gradients"] + at["temporaries"] < 8 * 4 * 100 * width + 4 * weights(model[0])
    dense = memory_profile(model, x, optimizer="qcompile-adam").predicted.breakdown
    assert dense["gradients"] + dense["temporaries"] > 4 * neurons * width


@pytest.mark.parametrize("form", ["T1", "T2_4", "Quadra"])
def test_quadratic_layers(form) -> None:
    model = qcompile.transform(convolutional(), form)
    profile = memory_profile(model, torch.randn(5, 3, 10, 8))
    assert {layer.kind for layer in profile.layers} >= {"QuadraticConv2d", "QuadraticLinear"}
    assert profile.predicted.breakdown["parameters"] == weights(model)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        y = self.inner(x)
        return y if y.sum() > 0 else -y


def test_control_flow_on_numbers_names_the_way_round() -> None:
    with pytest.raises(TraceError, match=r"depends on numbers.*measure=True") as error:
        memory_profile(Branching(), torch.randn(2, 4))
    assert "test_prediction.py" in str(error.value)


def test_a_hidden_layer_that_picks_neurons_is_named() -> None:
    hidden = qcompile.nn.LSHHidden(WIDTH, 64, config=qcompile.LSH(active=4))
    with pytest.raises(TraceError, match=r"'0'.*LSHHidden.*measure=True"):
        memory_profile(nn.Sequential(hidden, nn.Linear(64, 3)), torch.randn(2, WIDTH))


def test_bad_input() -> None:
    model, x = perceptron(), torch.randn(2, WIDTH)
    with pytest.raises(ConfigurationError, match="example inputs"):
        memory_profile(model, None)
    with pytest.raises(ConfigurationError, match=r"torch\.nn\.Module"):
        memory_profile("model", x)
    with pytest.raises(ConfigurationError, match="Did you mean 'adam'"):
        memory_profile(model, x, optimizer="adamm")
    with pytest.raises(ConfigurationError, match="unknown autocast 'float8'"):
        memory_profile(model, x, autocast="float8")
    with pytest.raises(ConfigurationError, match="nothing to do"):
        memory_profile(model, x, predict=False)
    with pytest.raises(ConfigurationError, match="'cpu' or 'cuda'"):
        memory_profile(model, x, device="tpu")
    with pytest.raises(PassError, match=r"module '0'.*reduction dim"):
        memory_profile(model, torch.randn(2, WIDTH + 1))
    with pytest.raises(PassError, match="no trainable parameter"):
        memory_profile(perceptron().requires_grad_(False), x)
    with pytest.raises(PassError, match="LazyLinear learns its shape"):
        memory_profile(nn.LazyLinear(3), x)
