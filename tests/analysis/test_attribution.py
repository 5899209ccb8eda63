"""Integrated gradients of activation-free quadratic networks are exact."""

import pytest
import torch
from torch import nn

from qcompile.analysis import integrated_gradients
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import QuadraticLinear


def network(layers):
    torch.manual_seed(layers)
    parts = [QuadraticLinear(6, 6, form=form) for form in ("Quadra", "T4", "T2_4")[:layers]]
    return nn.Sequential(*parts, nn.Linear(6, 3)).double()


def inputs():
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_attributions_add_up_to_the_difference(layers):
    model, x = network(layers), inputs()
    target = torch.tensor([0, 1, 2, 1])
    found = integrated_gradients(model, x, target, layers=layers)
    with torch.no_grad():
        change = model(x) - model(torch.zeros_like(x))
    expected = change.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(found.sum(1), expected, rtol=1e-6, atol=1e-7)


def test_more_points_change_nothing_and_fewer_do():
    model, x = network(3), inputs()
    exact = integrated_gradients(model, x, 1, layers=3)
    torch.testing.assert_close(
        integrated_gradients(model, x, 1, layers=6), exact, rtol=1e-6, atol=1e-7
    )
    assert not torch.allclose(integrated_gradients(model, x, 1, layers=2), exact, rtol=1e-3)


def test_a_baseline_of_ones():
    model, x = network(2), inputs()
    found = integrated_gradients(model, x, 0, layers=2, baseline=1.0)
    with torch.no_grad():
        change = (model(x) - model(torch.ones_like(x)))[:, 0]
    torch.testing.assert_close(found.sum(1), change, rtol=1e-6, atol=1e-7)


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match="1 to 12"):
        integrated_gradients(network(1), inputs(), 0, layers=0)
    with pytest.raises(DataError, match="floating"):
        integrated_gradients(network(1), inputs().long(), 0, layers=1)
