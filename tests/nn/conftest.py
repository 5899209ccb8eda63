"""A small LSH-sparse layer and data for it, and small chunks for hybrid back-propagation."""

import pytest
import torch

from qcompile import LSH
from qcompile.nn import LSHLinear
from qcompile.nn.quadratic import branches, elementwise
from qcompile.optim import Adam

SMALL = LSH(tables=8, hashes=2, bucket=16, active=12, negatives=20, rehash=3, rehash_decay=0.2)


@pytest.fixture(scope="session")
def layer():
    """Make an ``LSHLinear``."""

    def make(config=SMALL, bias=True, depth=13, neurons=90, **options):
        return LSHLinear(depth, neurons, bias, config=config, **options)

    return make


@pytest.fixture(scope="session")
def batch():
    """Make hidden activations [B, d] and labels [B]."""

    def make(examples=11, depth=13, neurons=90, seed=0):
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(examples, depth, generator=generator).relu()
        return hidden, torch.randint(neurons, (examples,), generator=generator)

    return make


@pytest.fixture(scope="session")
def train(batch):
    """Train a layer on batches of their own for each step; return losses and optimiser."""

    def run(module, steps, start=0, optimizer=None):
        optimizer = optimizer or Adam(module.parameters(), lr=0.05)
        losses = []
        for step in range(start, start + steps):
            hidden, target = batch(depth=module.in_features, neurons=module.out_features, seed=step)
            optimizer.zero_grad()
            loss = module(hidden, target).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, optimizer

    return run


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small inputs of tests of hybrid back-propagation take several chunks."""
    monkeypatch.setitem(elementwise.CHUNK_ELEMENTS, "cpu", 100)
    monkeypatch.setitem(branches.PART_ELEMENTS, "cpu", 400)
