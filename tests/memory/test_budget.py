"""Memory levels chosen for a budget."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import qcompile
from qcompile.errors import ConfigurationError, PassError
from qcompile.memory import fit_memory, memory_profile
from qcompile.memory.budget import adjustable

BATCH, WIDTH = 2000, 40
EACH = 4 * BATCH * WIDTH


class Adjustable(nn.Module):
    """Keeps six tensors of activations, or two and its input, or its input."""

    def __init__(self, products: int = 1) -> None:
        super().__init__()
        self.layer, self.products, self._level = nn.Linear(WIDTH, WIDTH), products, 0

    @property
    def memory(self) -> int:
        return self._level

    @memory.setter
    def memory(self, level: int) -> None:
        self._level = level

    def forward(self, x):
        if self.memory == 3:
            return checkpoint(lambda x: self._end(self._begin(x)), x, use_reentrant=False)
        y = self._begin(x)
        return checkpoint(self._end, y, use_reentrant=False) if self.memory else self._end(y)

    def _begin(self, x):
        for _ in range(self.products):
            x = self.layer(x)
        return x

    def _end(self, y):
        for _ in range(5):
            y = torch.tanh(y)
        return y


def stack() -> nn.Sequential:
    return nn.Sequential(Adjustable(), Adjustable(15), Adjustable(), nn.Linear(WIDTH, 3))


def peak(model: nn.Module, level: int, x) -> int:
    for module in adjustable(model).values():
        module.memory = level
    return memory_profile(model, x).peak


def test_room_enough_changes_nothing() -> None:
    model, x = stack(), torch.randn(BATCH, WIDTH)
    choice = fit_memory(model, "1GiB", x)
    assert set(choice.levels.values()) == {0}
    assert choice.peak == choice.peak_before == memory_profile(model, x).peak
    assert choice.operations == choice.operations_before
    assert choice.predictions == 1


def test_the_cheapest_layers_give_way_first() -> None:
    model, x = stack(), torch.randn(BATCH, WIDTH)
    whole = peak(model, 0, x)
    choice = fit_memory(model, whole - 3 * EACH, x)
    assert choice.peak <= whole - 3 * EACH
    assert choice.peak == memory_profile(model, x).peak
    # The middle layer would have to repeat fifteen products.
    assert choice.levels["1"] != 3
    assert {name: module.memory for name, module in adjustable(model).items()} == choice.levels
    assert 0 < choice.operations / choice.operations_before - 1 < 0.1


@pytest.mark.parametrize("room", [0.15, 0.7])
def test_any_budget_between_the_extremes_is_kept(room) -> None:
    model, x = stack(), torch.randn(BATCH, WIDTH)
    least, most = peak(model, 3, x), peak(model, 0, x)
    budget = int(least + room * (most - least))
    choice = fit_memory(model, budget, x)
    assert memory_profile(model, x).peak == choice.peak <= budget


def test_nothing_is_given_up_that_has_room() -> None:
    model, x = stack(), torch.randn(BATCH, WIDTH)
    budget = (peak(model, 0, x) + peak(model, 3, x)) // 2
    choice = fit_memory(model, budget, x)
    for name, module in adjustable(model).items():
        if module.memory:
            module.memory = 0
            assert memory_profile(model, x).peak > budget, name
            module.memory = choice.levels[name]


def test_too_little_says_what_the_least_is() -> None:
    model, x = stack(), torch.randn(BATCH, WIDTH)
    least = peak(model, 3, x)
    adjustable(model)["0"].memory = 1
    with pytest.raises(PassError, match=rf"at least .* \({least:,} bytes: .*activations"):
        fit_memory(model, 1000, x)
    levels = [module.memory for module in adjustable(model).values()]
    assert levels == [1, 3, 3]  # as before


def test_through_transform() -> None:
    model, x = stack(), torch.randn(BATCH, WIDTH)
    budget = peak(model, 0, x) - 2 * EACH
    peak(model, 0, x)
    fitted = qcompile.transform(model, memory="auto", memory_budget=budget, example_inputs=x)
    assert memory_profile(fitted, x).peak <= budget
    assert any("memory levels" in note for note in fitted.qcompile_report.notes)
    assert all(module.memory == 0 for module in adjustable(model).values())
    options = {"optimizer": "adam"}
    with pytest.raises(PassError, match="optimizer state"):
        qcompile.transform(
            model, memory="auto", memory_budget="4KiB", memory_options=options, example_inputs=x
        )


def test_bad_requests() -> None:
    model, x = stack(), torch.randn(2, WIDTH)

    def refused(match, **options) -> None:
        with pytest.raises(ConfigurationError, match=match):
            qcompile.transform(model, **{"example_inputs": x, **options})

    refused("memory_budget='4GiB'", memory="auto")
    refused("must be 'auto'", memory="little")
    refused("belong to memory='auto'", memory_budget="4GiB", quadratic="T2")
    refused("unknown unit", memory="auto", memory_budget="4Gbit")
    refused("example inputs", memory="auto", memory_budget="4GiB", example_inputs=None)
    refused(
        "unknown option speed", memory="auto", memory_budget="4GiB", memory_options={"speed": 1}
    )
    with pytest.raises(ConfigurationError, match="no layer with memory levels"):
        fit_memory(nn.Linear(WIDTH, 3), "1GiB", x)
