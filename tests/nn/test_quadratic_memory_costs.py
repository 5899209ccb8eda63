"""What each level of hybrid back-propagation keeps, and what it computes again."""

import pytest
import torch
from memory_levels import at_level
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qcompile.nn import (
    QuadraticBlock,
    QuadraticConv2d,
    QuadraticLinear,
)

pytestmark = pytest.mark.usefixtures("small_chunks")


def saved(module, x):
    """Count the bytes that autograd keeps beside parameters and input."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [x, *module.parameters()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    kept.pop(y.untyped_storage().data_ptr(), None)
    del y
    return sum(kept.values())


def test_level_one_keeps_the_branches_and_level_three_nothing_of_the_batch():
    layers = QuadraticConv2d(8, 8, 3, padding=1, bias=False)
    block = QuadraticBlock(layers, "both", nn.ReLU())
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    activation = x.numel() * 4
    constants = 4 * 2 * 8 * 4
    assert saved(block, x) >= 6 * activation
    assert saved(at_level(block, 1), x) == 3 * activation + constants
    assert saved(at_level(block, 3), x) == constants


@pytest.mark.parametrize(
    ("form", "one", "three"),
    [("T1", 0, 0), ("T2", 0, 0), ("T3", 1, 0), ("T4", 2, 0), ("T2_4", 2, 0), ("Quadra", 2, 0)],
)
def test_layers_keep_no_more_than_their_factors(form, one, three):
    module = QuadraticLinear(8, 8, form=form)
    x = torch.randn(64, 8, requires_grad=True)
    activation = x.numel() * 4
    assert saved(at_level(module, 1), x) == one * activation
    assert saved(at_level(module, 3), x) == three * activation


@pytest.mark.parametrize(
    ("form", "batch_norm", "share"),
    [
        ("Quadra", "both", 4 / 3),
        ("T2", "none", 1),
        ("Quadra", "none", 11 / 9),
        ("T4", "none", 4 / 3),
    ],
)
def test_operations_of_level_three(form, batch_norm, share):
    block = QuadraticBlock(QuadraticConv2d(4, 4, 3, form=form), batch_norm)
    counts = []
    for level in (0, 1, 3):
        x = torch.randn(2, 4, 8, 8, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            at_level(block, level)(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] == counts[0]
    assert counts[2] / counts[0] == pytest.approx(share)
