"""Settings for quadratic terms: groups, shrinkage, warm-up."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, StepLR

import qcompile
from qcompile.config import FORMS
from qcompile.errors import ConfigurationError
from qcompile.nn import QuadraticConv2d, QuadraticLinear
from qcompile.optim import QuadraticWarmup, quadratic_groups, quadratic_parameters, shrink


def names(model):
    return {each.name: each.rest for each in quadratic_parameters(model)}


def test_the_first_order_neuron_in_a_form_is_left_out():
    assert names(QuadraticLinear(3, 2, form="Quadra")) == {
        "weight_a": 0.0,
        "bias_a": 0.0,
        "weight_b": None,
        "bias_b": None,
    }
    assert names(QuadraticConv2d(3, 2, 3, form="T4")) == {"weight_b": 0.0, "bias_b": 1.0}
    assert set(names(QuadraticLinear(3, 2, form="T2")).values()) == {None}


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_is_in_one_group(form):
    model = nn.Sequential(nn.Linear(4, 3), QuadraticLinear(3, 3, form=form), nn.BatchNorm1d(3))
    groups = quadratic_groups(model, 0.5, scale=0.2, shrinkage=0.1, momentum=0.9)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(map(id, model.parameters()))
    quadratic = {id(each.parameter) for each in quadratic_parameters(model)}
    for group in groups:
        assert group["momentum"] == 0.9
        assert group["lr"] == pytest.approx(0.1 if group["quadratic"] else 0.5)
        assert all((id(p) in quadratic) == group["quadratic"] for p in group["params"])


def test_a_parameter_that_a_first_order_layer_owns_too_is_first_order():
    layer = QuadraticLinear(3, 3, form="T3", bias=False)
    linear = nn.Linear(3, 3, bias=False)
    linear.weight = layer.weight_a
    assert names(nn.Sequential(layer, linear)) == {}


@pytest.mark.parametrize("form", ["T1L", "T4", "T2_4", "Quadra"])
def test_shrinkage_leads_back_to_the_first_order_neuron(form):
    torch.manual_seed(0)
    linear = nn.Linear(5, 4).double()
    model = qcompile.transform(copy.deepcopy(linear), quadratic=form)
    kept = {id(each.parameter) for each in quadratic_parameters(model)}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) in kept:
                parameter.add_(torch.randn_like(parameter))
    groups = quadratic_groups(model, 0.5, scale=0.5, shrinkage=2.0, weight_decay=0.1)
    optimizer = torch.optim.SGD(groups)
    handle = shrink(optimizer)
    x = torch.randn(7, 5, dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    assert not torch.allclose(model(x), linear(x))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
            group["weight_decay"] = 0.0
    optimizer.step()
    for each in quadratic_parameters(model):
        if each.rest is not None:
            index = next(i for i, p in enumerate(model.parameters()) if p is each.parameter)
            half = before[index] + 0.5 * (each.rest - before[index])
            torch.testing.assert_close(each.parameter.detach(), half)
    for _ in range(80):
        optimizer.step()
    torch.testing.assert_close(model(x), linear(x))
    handle.remove()


def test_warm_up_raises_the_quadratic_rates_alone_and_goes_with_a_schedule():
    model = nn.Sequential(nn.Linear(2, 2), QuadraticLinear(2, 2, form="T4"))
    optimizer = torch.optim.SGD(quadratic_groups(model, 1.0, scale=0.5))
    schedule = ChainedScheduler(
        [QuadraticWarmup(optimizer, 4, start=0.2), StepLR(optimizer, 5, gamma=0.1)]
    )
    rates = []
    for _ in range(7):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    first = [1, 1, 1, 1, 1, 0.1, 0.1]
    second = [0.1, 0.2, 0.3, 0.4, 0.5, 0.05, 0.05]
    for (plain, *quadratic), one, two in zip(rates, first, second, strict=True):
        assert plain == pytest.approx(one)
        assert quadratic == pytest.approx([two] * len(quadratic))


def test_settings_survive_saving(tmp_path):
    model = QuadraticLinear(3, 2, form="T4")
    optimizer = torch.optim.AdamW(quadratic_groups(model, 0.1, shrinkage=0.5))
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    again = torch.optim.AdamW(quadratic_groups(model, 0.2))
    again.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    assert [g["shrinkage"] for g in again.param_groups] == [
        g["shrinkage"] for g in optimizer.param_groups
    ]
    shrink(again)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be"),
        ({"lr": 1.0, "scale": float("nan")}, "scale must be"),
        ({"lr": 1.0, "shrinkage": 20.0}, "overshoots"),
        ({"lr": 1.0, "rest": 1.0}, "rest is set"),
    ],
)
def test_what_is_out_of_range_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        quadratic_groups(QuadraticLinear(2, 2), **settings)


def test_optimisers_without_such_groups_are_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="quadratic_groups"):
        shrink(optimizer)
    with pytest.raises(ConfigurationError, match="quadratic_groups"):
        QuadraticWarmup(optimizer, 3)


@pytest.mark.parametrize("form", ["T4", "Quadra"])
def test_in_a_block_the_norms_of_quadratic_branches_lead_back(form):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU()).double()
    with torch.no_grad():
        plain(torch.randn(9, 2, 6, 6, dtype=torch.float64))
    plain.eval()
    config = qcompile.Quadratic(form, batch_norm="branch")
    model = qcompile.transform(plain, quadratic=config)
    assert {type(module).__name__ for module in model.modules()} >= {"QuadraticBlock"}
    leading = [each for each in quadratic_parameters(model) if each.rest is not None]
    assert all(".norm_" in each.name for each in leading)
    with torch.no_grad():
        for each in leading:
            each.parameter.add_(torch.randn_like(each.parameter))
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    assert not torch.allclose(model(x), plain(x))
    optimizer = torch.optim.SGD(quadratic_groups(model, 1.0, scale=0.5, shrinkage=1.0))
    shrink(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(60):
        optimizer.step()
    torch.testing.assert_close(model(x), plain(x))
