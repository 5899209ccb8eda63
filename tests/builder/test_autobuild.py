"""The auto-builder on scikit-learn's digits."""

import copy
import json
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import qcompile
from qcompile.builder import BuildConfig, autobuild
from qcompile.builder.network import edit, importance, masked, possible_edits, quadratic_layers
from qcompile.config import FORMS
from qcompile.errors import CheckpointError, ConfigurationError, DataError, PassError
from qcompile.flops import measure
from qcompile.nn import PRESERVING_FORMS, QuadraticBlock, QuadraticConv2d, QuadraticLinear
from qcompile.nn.quadratic.revert import to_first_order

QUICK = {"epochs": 2, "tune_epochs": 1, "batch": 32, "lr": 0.05}


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    inputs = torch.tensor(found.images[:900] / 8 - 1, dtype=torch.float32)[:, None]
    targets = torch.tensor(found.target[:900])
    return TensorDataset(inputs[:600], targets[:600]), TensorDataset(inputs[600:], targets[600:])


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


@pytest.fixture(scope="module")
def built(digits):
    lines = []
    config = BuildConfig(**QUICK, tolerance=0.05)
    given = network()
    before = copy.deepcopy(given.state_dict())
    result = autobuild(given, digits, budget=config, progress=lambda *told: lines.append(told))
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    return result, lines


def test_a_search_replaces_takes_out_and_tunes(built, digits):
    result, lines = built
    actions = [step.action for step in result.steps]
    assert actions[:2] == ["first-order", "replace"]
    assert actions[-2:] == ["tune", "first-order"]
    tried = [step for step in result.steps if step.action in ("remove", "revert")]
    assert tried
    assert actions[2] == "control"
    kept = sum(step.kept for step in tried)
    assert actions.count("control") == kept + (not tried[-1].kept)
    assert len(actions) == 4 + len(tried) + actions.count("control")
    replaced = result.steps[1]
    assert replaced.parameters > result.steps[0].parameters
    assert result.final.parameters <= replaced.parameters
    assert result.final.metric >= replaced.metric - 0.1
    inputs, targets = digits[1].tensors
    with torch.no_grad():
        found = float((result.model(inputs).argmax(1) == targets).float().mean())
    assert found == pytest.approx(result.final.metric)
    count = sum(parameter.numel() for parameter in result.model.parameters())
    assert (count, measure(copy.deepcopy(result.model), (inputs[:1],), {}).flops[""]) == (
        result.final.parameters,
        result.final.flops,
    )
    assert any(part == 1.0 for _, part in lines)


def test_a_step_that_loses_too_much_is_taken_back(digits):
    """Nothing may be lost: what does not come out at least as good stays as it was."""
    best = BuildConfig(epochs=2, tune_epochs=0, batch=32)
    calls = iter([0.5, 0.9, 0.9])  # the first-order network, the replaced one, its reference

    def metric(outputs, targets):
        return next(calls, 0.1)  # everything after that is bad

    result = autobuild(network(), digits, metric, best)
    edits = [step for step in result.steps if step.action in ("remove", "revert")]
    assert edits
    assert not any(step.kept for step in edits)
    assert all("below 0.9" in step.note for step in edits)
    assert result.final.parameters == result.steps[1].parameters


def test_a_step_is_compared_with_the_replaced_network_tuned_as_long(digits):
    """What tuning alone gains must not count for a step."""
    config = BuildConfig(epochs=1, tune_epochs=1, batch=300, tolerance=0.05)
    networks, order = [], iter(range(99))

    def metric(outputs, targets):
        networks.append(outputs)
        return 0.1 * next(order)  # first-order, replaced, its reference, masked ones, control, …

    result = autobuild(network(), digits, metric, config)
    control, step = result.steps[2:4]
    assert control.action == "control"
    assert control.parameters == result.steps[1].parameters
    assert step.metric == pytest.approx(control.metric + 0.1)
    assert step.kept
    assert result.steps[4].action == "control"
    assert not torch.equal(networks[1], networks[6])  # the control has been tuned

    falls = iter([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9])  # the control gains from being tuned

    def falling(outputs, targets):
        return next(falls, 0.6)  # candidates gain less

    result = autobuild(network(), digits, falling, config)
    tried = [step for step in result.steps if step.action in ("remove", "revert")]
    assert not any(step.kept for step in tried)
    assert all("below 0.9" in step.note for step in tried)


def test_the_index_is_that_of_the_paper(digits):
    model = qcompile.transform(network(), quadratic="Quadra").eval()
    with torch.no_grad():
        for layer in quadratic_layers(model).values():
            layer.weight_a.normal_()
    inputs, targets = digits[1].tensors

    def metric(model):
        with torch.no_grad():
            return -float(nn.functional.cross_entropy(model(inputs), targets))

    reference = metric(model)
    found = {each.layer: each for each in importance(model, metric, reference, inputs, print)}
    assert set(found) == {"0", "3", "7"}
    total = sum(p.numel() for p in model.parameters())
    flops = measure(copy.deepcopy(model), (inputs[:1],), {}).flops
    for name, layer in quadratic_layers(model).items():
        with masked(layer):
            loss = reference - metric(model)
        share = sum(p.numel() for p in layer.parameters()) / total
        expected = share * flops[name] / flops[""] / loss if loss > 0 else math.inf
        assert found[name].index == pytest.approx(expected)
    assert reference == metric(model)


def test_masking_is_zeroing():
    layer = QuadraticLinear(3, 2)
    with masked(layer):
        assert not layer(torch.ones(4, 3)).any()
    assert layer(torch.ones(4, 3)).any()


def test_a_search_that_was_stopped_goes_on_to_the_same_result(built, digits, tmp_path):
    class Stop(Exception):  # noqa: N818 - nothing is wrong
        pass

    config = BuildConfig(**QUICK, tolerance=0.05)
    stops = iter(["replaced network", "control", "re", "final network", "first-order network, as"])
    wanted = next(stops)

    def progress(line, part):
        nonlocal wanted
        if wanted is not None and line.startswith(wanted) and part == 1.0:
            wanted = next(stops, None)
            raise Stop

    for _ in range(9):
        try:
            result = autobuild(
                network(), digits, budget=config, folder=tmp_path / "s", progress=progress
            )
            break
        except Stop:
            continue
    assert wanted is None
    expected, _ = built
    assert [s.metric for s in result.steps] == [s.metric for s in expected.steps]
    for mine, theirs in zip(
        result.model.state_dict().values(), expected.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    again = autobuild(network(), digits, budget=config, folder=tmp_path / "s")
    assert [s.metric for s in again.steps] == [s.metric for s in expected.steps]


def test_another_search_in_the_folder_is_refused(digits, tmp_path):
    config = BuildConfig(epochs=1, tune_epochs=0, parameters=1e9)
    autobuild(network(), digits, budget=config, folder=tmp_path)
    with pytest.raises(CheckpointError, match="config batch is 7, was 64"):
        autobuild(
            network(),
            digits,
            budget=BuildConfig(epochs=1, tune_epochs=0, parameters=1e9, batch=7),
            folder=tmp_path,
        )
    other = network()
    other[0] = nn.Conv2d(1, 6, 5, stride=2, padding=2)
    with pytest.raises(CheckpointError, match=r"network 0\.weight is"):
        autobuild(other, digits, budget=config, folder=tmp_path)
    (tmp_path / "search.json").write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        autobuild(network(), digits, budget=config, folder=tmp_path)


def test_a_met_budget_takes_nothing_out(digits):
    result = autobuild(
        network(), digits, budget=BuildConfig(epochs=1, tune_epochs=0, parameters=1e9, flops=1e12)
    )
    actions = [step.action for step in result.steps]
    assert actions == ["first-order", "replace", "tune", "first-order"]


def test_tables_pictures_and_json(built, tmp_path):
    result, _ = built
    assert "replace" in str(result)
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.draw(tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("form", FORMS)
def test_reverting_is_the_inverse_of_converting(form):
    layer = QuadraticConv2d(4, 6, 3, stride=2, padding=1, groups=2, form=form)
    if form not in PRESERVING_FORMS:
        with pytest.raises(ConfigurationError, match="no first-order neuron"):
            to_first_order(layer)
        return
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(2, 4, 9, 9)
    converted = qcompile.transform(copy.deepcopy(plain), quadratic=form)
    back = to_first_order(converted)
    assert type(back) is nn.Conv2d
    torch.testing.assert_close(back(x), plain(x), rtol=0, atol=0)


def test_a_layer_that_is_used_twice_is_edited_in_both_places():
    shared = QuadraticLinear(4, 4)
    model = nn.ModuleDict({"first": shared, "second": nn.Sequential(shared)})
    edit(model, "revert", "first")
    assert model["first"] is model["second"][0]
    assert type(model["first"]) is nn.Linear


def test_only_layers_of_equal_shapes_can_be_removed():
    model = nn.Sequential(QuadraticLinear(4, 4, form="T2"), QuadraticLinear(4, 3))
    assert possible_edits(model, torch.ones(2, 4)) == {"0": ["remove"], "1": ["revert"]}


@pytest.mark.parametrize(
    "values",
    [{"epochs": 0}, {"lr": 0.0}, {"tolerance": -1.0}, {"parameters": 0.0}, {"quadratic": "T9"}],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigurationError):
        BuildConfig(**values)


def test_what_cannot_be_searched_is_refused(digits):
    with pytest.raises(ConfigurationError, match="metric"):
        autobuild(network(), digits, "precision")
    with pytest.raises(DataError, match="empty"):
        autobuild(network(), (TensorDataset(torch.empty(0, 1)), digits[1]))
    with pytest.raises(PassError, match="0 rewritten"):
        config = BuildConfig(epochs=1)
        autobuild(nn.Sequential(nn.Flatten(), nn.Softmax(1)), digits, budget=config)


def test_a_block_is_masked_and_reverted_as_one():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).eval()
    x = torch.randn(4, 1, 5, 5)
    config = qcompile.Quadratic("Quadra", batch_norm="branch")
    model = qcompile.transform(plain, quadratic=config)
    (name,) = quadratic_layers(model)
    with masked(model.get_submodule(name)):
        assert not model(x).any()
    assert possible_edits(model, x) == {name: ["revert"]}
    back = edit(model, "revert", name)
    torch.testing.assert_close(back(x), plain(x), rtol=0, atol=0)
    assert not any("Quadratic" in type(module).__name__ for module in back.modules())


def test_reverting_a_block_keeps_its_pooling():
    torch.manual_seed(0)
    layer = QuadraticConv2d(2, 3, 3, bias=False)
    block = QuadraticBlock(layer, "branch", nn.ReLU(), nn.MaxPool2d(2)).eval()
    nn.init.zeros_(block.norm_a.weight)
    back = to_first_order(block)
    x = torch.randn(2, 2, 8, 8)
    assert back(x).shape == (2, 3, 3, 3)
    torch.testing.assert_close(back(x), block(x), rtol=0, atol=0)
