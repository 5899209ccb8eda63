"""LSHLinear in training: optimisers, schedule, determinism, saving, resuming and copies."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from qcompile import LSH
from qcompile.nn import LSHLinear
from qcompile.optim import Adam

D, N = 13, 90
SMALL = LSH(tables=8, hashes=2, bucket=16, active=12, negatives=20, rehash=3, rehash_decay=0.2)


@pytest.mark.parametrize("family", ["simhash", "dwta"])
@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
def test_training_learns(layer, batch, family, policy):
    config = LSH(family=family, policy=policy, tables=8, hashes=2, active=12, negatives=10)
    module = layer(config, depth=50)
    optimizer = Adam(module.parameters(), lr=0.05)
    hidden, target = batch(60, depth=50)
    module.eval()
    before = module(hidden, target).loss.item()
    module.train()
    for _ in range(60):
        optimizer.zero_grad()
        module(hidden, target).loss.backward()
        optimizer.step()
    module.eval()
    assert module(hidden, target).loss.item() < 0.3 * before
    assert (module.predict(hidden) == target).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["SGD", "SparseAdam", "dense AdamW"])
def test_torch_optimisers_train_it_too(layer, train, kind):
    module = layer()
    module.sparse_grad = kind != "dense AdamW"
    optimizer = getattr(torch.optim, kind.split()[-1])(module.parameters(), lr=0.01)
    losses, _ = train(module, 3, optimizer=optimizer)
    assert np.isfinite(losses).all()


def test_runs_depend_on_the_seed_and_not_on_threads(layer, train):
    start = layer()
    weights = []
    for threads, seed in ((1, 0), (2, 0), (3, 0), (1, 1)):
        module = LSHLinear(D, N, config=LSH(**{**vars(SMALL), "seed": seed}))
        module.load_state_dict(start.state_dict())
        torch.set_num_threads(threads)
        try:
            train(module, 9)
        finally:
            torch.set_num_threads(1)
        weights.append(module.eval().weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_the_rehash_schedule(layer, batch):
    module = layer(LSH(tables=2, hashes=1, active=5, rehash=4, rehash_decay=0.5))
    hidden, target = batch(3)
    rebuilt = []
    for step in range(40):
        before = module.rehashes
        module(hidden, target)
        if module.rehashes > before:
            rebuilt.append(step)
    # N₀·e^{λi}: 4, then 4·e^0.5 = 6.6, 4·e = 10.9, 4·e^1.5 = 17.9 more.
    assert rebuilt == [4, 11, 22]
    assert module.steps == 40
    module.eval()
    module(hidden, target)
    assert module.steps == 40


def test_tables_follow_the_weights(layer):
    module = layer(LSH(tables=8, hashes=2, active=2, negatives=0, rehash=1, rehash_decay=0))
    hidden = torch.eye(D)[:1].abs()
    target = torch.tensor([0])

    def found():
        module.zero_grad()
        module(hidden, target).loss.backward()
        return set(module.weight.grad.coalesce().indices()[0].tolist())

    with torch.no_grad():
        module.weight.normal_(generator=torch.Generator().manual_seed(1))
        module.weight[7] = hidden[0]
    assert found() == {0, 7}
    with torch.no_grad():
        module.weight[[7, 42]] = module.weight[[42, 7]]
    assert found() == {0, 42}


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("steps", [4, 7])
def test_a_resumed_run_equals_the_one_that_went_on(layer, train, how, steps):
    module = layer()
    _, optimizer = train(module, steps)
    resumed = layer()
    if how == "deepcopy":
        resumed = copy.deepcopy(module)
    elif how == "pickle":
        resumed = pickle.loads(pickle.dumps(module))
    elif how == "state_dict":
        resumed.load_state_dict(module.state_dict())
    else:
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
    other = Adam(resumed.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if how != "state_dict":
        # Copies were made before the optimiser's state was asked for; idle rows catch up there.
        resumed.load_state_dict(module.state_dict())
    assert (resumed.steps, resumed.rehashes) == (module.steps, module.rehashes)
    losses, _ = train(module, 12, start=steps, optimizer=optimizer)
    assert losses == train(resumed, 12, start=steps, optimizer=other)[0]
    assert torch.equal(module.eval().weight, resumed.eval().weight)


def test_a_plain_linear_and_this_layer_exchange_weights(layer, batch):
    linear = nn.Linear(D, N)
    module = layer()
    module.load_state_dict(linear.state_dict())
    assert torch.equal(module.weight, linear.weight)
    adopted = LSHLinear.from_linear(linear.eval(), SMALL)
    assert adopted.weight is linear.weight
    assert adopted.bias is linear.bias
    assert not adopted.training
    assert list(adopted.state_dict()) == ["weight", "bias", "_extra_state"]
    bare = LSHLinear.from_linear(nn.Linear(D, N, bias=False))
    hidden, target = batch()
    bare(hidden, target).loss.backward()
    assert bare.bias is None
    assert LSHLinear(D, N, dtype=torch.bfloat16).eval()(hidden.bfloat16()).dtype == torch.bfloat16


def test_a_selector_function_does_not_hinder_pickling():
    module = LSHLinear.from_linear(nn.Linear(D, N), LSH(where=lambda name, module: True))
    assert pickle.loads(pickle.dumps(module)).config == LSH()


def test_evaluation_and_saving_see_the_weights_of_dense_adam(layer, train):
    weights = []
    for sparse in (True, False):
        torch.manual_seed(0)
        module = layer(LSH(active=1, negatives=5))
        module.sparse_grad = sparse
        kind = Adam if sparse else torch.optim.Adam
        optimizer = kind(module.parameters(), lr=1e-4)
        train(module, 15, optimizer=optimizer)
        late = module.weight.detach().clone()
        module.eval()
        assert torch.equal(late, module.weight) != sparse
        weights.append(module.weight.detach())
    # Forwards in between read rows a few steps late, by a small part of these small steps.
    assert torch.allclose(weights[0], weights[1], atol=2e-5)
