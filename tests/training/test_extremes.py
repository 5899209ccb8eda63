"""Watches for values that grow without bound."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from qcompile.errors import ConfigurationError, QCompileWarning, TrainingError
from qcompile.nn import QuadraticBlock, QuadraticLinear
from qcompile.training import ExtremeValues, clip_gradients


def deep(form, layers=8, width=12):
    torch.manual_seed(0)
    return nn.Sequential(*[QuadraticLinear(width, width, form=form) for _ in range(layers)])


def test_the_first_layer_with_nan_is_named():
    model = deep("T3")
    x = 1e6 * torch.ones(2, 12)
    with (
        warnings.catch_warnings(record=True) as said,
        ExtremeValues(model, limit=1e8) as watch,
        pytest.raises(TrainingError, match=r"layer \d \(QuadraticLinear\) returned NaN") as error,
    ):
        warnings.simplefilter("always")
        model(x)
    assert "Large before it: 0" in str(error.value)
    assert issubclass(said[0].category, QCompileWarning)
    assert "layer 0" in str(said[0].message)
    assert watch.largest[0].ever >= watch.largest[-1].ever
    model(x)  # watched no longer


def test_a_sound_model_passes_in_silence():
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ExtremeValues(model) as watch:
            model(torch.ones(2, 3))
    assert {each.layer for each in watch.largest} == {"0", "1"}


def test_only_every_so_many_calls_in_training_are_looked_at():
    model = nn.Sequential(nn.Identity())
    broken = torch.full((1,), math.nan)
    with ExtremeValues(model, every=3):
        model(torch.ones(1))
        model(broken)
        model(broken)
        with pytest.raises(TrainingError, match="call 4"):
            model(broken)
        model.eval()
        for _ in range(4):
            model(broken)


def test_clipping_is_that_of_torch_and_knows_the_largest():
    model = deep("T4", 3)
    model(torch.randn(5, 12, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    other = copy.deepcopy(model)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.grad *= 100
        theirs.grad = mine.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
    found = clip_gradients(model, 0.5)
    assert found.norm == pytest.approx(float(norm))
    assert found.factor < 1
    norms = {n: float(p.grad.norm()) / found.factor for n, p in model.named_parameters()}
    assert found.largest == max(norms, key=norms.get)
    assert found.largest_norm == pytest.approx(norms[found.largest])
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_row_sparse_gradients_are_clipped():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    found = clip_gradients(embedding, 1.0)
    assert found.norm == pytest.approx(math.sqrt(2 * 4 + 2))
    assert float(embedding.weight.grad.to_dense().norm()) == pytest.approx(1.0, abs=1e-5)


def test_a_broken_gradient_is_named_and_nothing_changes():
    model = deep("T4", 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    model[1].weight_b.grad[0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"1\.weight_b holds NaN or infinity;"):
        clip_gradients(model, 1.0)
    assert float(model[0].weight_a.grad[0, 0]) == 3.0


def test_without_gradients_there_is_nothing_to_clip():
    assert clip_gradients(nn.Linear(1, 1), 1.0).norm == 0


@pytest.mark.parametrize("arguments", [{"limit": 0.0}, {"every": 0}])
def test_watches_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ConfigurationError, match="ExtremeValues"):
        ExtremeValues(nn.Identity(), **arguments)
    with pytest.raises(ConfigurationError, match="max_norm"):
        clip_gradients(nn.Identity(), 0.0)


@pytest.mark.parametrize("memory", [0, 1, 3])
def test_a_block_is_watched_at_every_level_of_memory(memory):
    layer = QuadraticLinear(3, 2, bias=False)
    model = nn.Sequential(QuadraticBlock(layer, "branch", nn.ReLU(), memory=memory))
    with torch.no_grad():
        layer.weight_c.fill_(math.inf)
    with ExtremeValues(model), pytest.raises(TrainingError, match=r"layer 0"):
        model(torch.ones(4, 3))
