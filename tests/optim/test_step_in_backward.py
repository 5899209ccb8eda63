"""Parameters that are updated within the backward pass."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

import qcompile
from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import LSHLinear
from qcompile.optim import SGD, Adam, AdamW, SparseAdam

HIDDEN, NEURONS, BATCH = 12, 300, 6
KINDS = {
    "adam": (Adam, {"lr": 0.01}),
    "adamw": (AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "sparse adam": (SparseAdam, {"lr": 0.01}),
    "sgd": (SGD, {"lr": 0.1}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
}
# What they compute when every row gets a gradient.
DENSE = {
    Adam: torch.optim.Adam,
    AdamW: torch.optim.AdamW,
    SparseAdam: torch.optim.Adam,
    SGD: torch.optim.SGD,
}


class Network(nn.Module):
    def __init__(self, bias=True, dtype=torch.float32, **config):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(5, HIDDEN)
        config = qcompile.LSH(**{"active": 16, "negatives": 20, "tables": 4, **config})
        self.head = LSHLinear(HIDDEN, NEURONS, bias, config=config, dtype=dtype)

    def forward(self, inputs, target=None):
        return self.head(torch.relu(self.body(inputs)), target)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 5, generator=generator)
    return inputs, torch.randint(NEURONS, (BATCH,), generator=generator)


def train(network, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        _, loss = network(batch(step)[0], target=batch(step)[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def make(kind, fused=True, **options):
    network = Network(**options)
    optimizer = KINDS[kind][0](network.parameters(), **KINDS[kind][1])
    if fused:
        optimizer.step_in_backward(network.head)
    return network, optimizer


def equal(first, second):
    return all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_separate_steps(kind, dtype):
    networks = []
    for fused in (True, False):
        network, optimizer = make(kind, fused, dtype=dtype)
        losses = train(network, optimizer, 25)
        assert (network.head.weight.grad is None) == fused
        networks.append((network.eval(), losses))
    (fused, first), (separate, second) = networks
    if dtype == torch.float32:
        assert equal(fused, separate)
        assert first == second
    else:  # gradients that are returned are rounded to the parameter's type
        difference = (fused.head.weight - separate.head.weight).abs().mean()
        assert difference < 5e-3
        assert first == pytest.approx(second, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_neurons_active_it_equals_dense_torch(kind):
    # Idle rows exist none the less: in the bias-free first steps all logits are known anyway.
    network, optimizer = make(kind, active=NEURONS, negatives=0)
    reference = Network().double()
    dense = DENSE[KINDS[kind][0]](reference.parameters(), **KINDS[kind][1])
    train(network, optimizer, 30)
    for step in range(30):
        inputs, target = batch(step)
        dense.zero_grad()
        hidden = torch.relu(reference.body(inputs.double()))
        scores = nn.functional.linear(hidden, reference.head.weight, reference.head.bias)
        nn.functional.cross_entropy(scores, target).backward()
        dense.step()
    assert torch.allclose(network.head.weight.double(), reference.head.weight, atol=2e-5)
    assert torch.allclose(network.head.bias.double(), reference.head.bias, atol=2e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sparse adam"])
@pytest.mark.parametrize("fused", [True, False])
def test_no_forward_sees_a_row_that_is_late(kind, fused):
    network, optimizer = make(kind, fused, mode="sampled")
    dense = Network(mode="sampled")
    dense.head.sparse_grad = False
    reference = DENSE[KINDS[kind][0]](dense.parameters(), **KINDS[kind][1])
    assert train(network, optimizer, 60) == pytest.approx(train(dense, reference, 60), rel=1e-4)
    assert torch.allclose(network.eval().head.weight, dense.head.weight, atol=2e-5)


def test_the_number_of_threads_does_not_matter():
    networks = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            network, optimizer = make("adam")
            train(network, optimizer, 10)
        finally:
            torch.set_num_threads(before)
        networks.append(network)
    assert equal(*networks)


def test_evaluation_in_between_changes_results_by_rounding_alone():
    networks = []
    for evaluate in (False, True):
        network, optimizer = make("adamw")
        for start in range(0, 30, 5):
            train(network, optimizer, 5, start)
            if evaluate:
                network.eval()
                network(batch(0)[0])
                network.train()
        networks.append(network.eval())
    assert torch.allclose(networks[0].head.weight, networks[1].head.weight, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_equals_the_one_that_went_on(kind, dtype, tmp_path):
    network, optimizer = make(kind, dtype=dtype)
    train(network, optimizer, 12)
    torch.save((network.state_dict(), optimizer.state_dict()), tmp_path / "checkpoint.pt")
    other, resumed = make(kind, dtype=dtype)
    model_state, state = torch.load(tmp_path / "checkpoint.pt")
    other.load_state_dict(model_state)
    resumed.load_state_dict(state)
    train(network, optimizer, 12, start=12)
    train(other, resumed, 12, start=12)
    assert equal(network, other)


def test_rates_are_read_in_the_backward_pass():
    network, optimizer = make("sgd")
    before = network.head.weight.detach().clone()
    _, loss = network(batch(0)[0], target=batch(0)[1])
    optimizer.param_groups[0]["lr"] = 0.0
    loss.backward()
    assert torch.equal(network.head.weight, before)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    train(network, optimizer, 1)
    assert not torch.equal(network.head.weight, before)


def test_a_forward_without_a_backward_changes_nothing():
    networks = []
    for extra in (False, True):
        network, optimizer = make("adam")
        train(network, optimizer, 5)
        if extra:
            with torch.no_grad():
                network.head(torch.randn(3, HIDDEN), torch.tensor([1, 2, 3]))
            network.head._tables.steps -= 1  # which the call has counted
        train(network, optimizer, 5, start=5)
        networks.append(network.eval())
    assert torch.allclose(networks[0].head.weight, networks[1].head.weight, atol=1e-6)


def test_two_backwards_before_a_step_are_refused():
    network, optimizer = make("adam")
    train(network, optimizer, 2)
    network(batch(2)[0], target=batch(2)[1]).loss.backward()
    before = network.head.weight.detach().clone()
    loss = network(batch(3)[0], target=batch(3)[1]).loss
    with pytest.raises(DataError, match="one backward"):
        loss.backward()
    # Rows may have caught up, but none has taken a step twice.
    optimizer.step()
    assert optimizer.state[network.head.weight]["step"] == 3
    touched = (network.head.weight != before).any(1).sum()
    assert touched < NEURONS
    train(network, optimizer, 1, start=3)
    assert optimizer.state[network.head.weight]["step"] == 4


def test_a_gradient_beside_the_update_is_refused():
    network, optimizer = make("adam")
    network(batch(0)[0], target=batch(0)[1]).loss.backward()
    network.head.weight.grad = torch.zeros_like(network.head.weight).to_sparse(1)
    with pytest.raises(DataError, match="taken its step"):
        optimizer.step()


def test_a_step_without_a_backward_takes_none():
    network, optimizer = make("adam")
    train(network, optimizer, 3)
    optimizer.zero_grad()
    optimizer.step()
    network.body(batch(3)[0]).sum().backward()
    optimizer.step()
    assert optimizer.state[network.head.weight]["step"] == 3
    assert optimizer.state[network.body.weight]["step"] == 4


def test_schedulers_closures_and_hooks_work():
    network, optimizer = make("adam")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    before = network.head.weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = network(batch(0)[0], target=batch(0)[1]).loss
        loss.backward()
        return loss.item()

    losses = []
    for _ in range(10):
        losses.append(optimizer.step(closure))
        schedule.step()
    assert losses[-1] < losses[0]
    assert len(calls) == 10
    assert not torch.equal(before, network.head.weight)


def test_unsuitable_layers_and_parameters_are_refused():
    network, optimizer = make("adam", fused=False)
    with pytest.raises(ConfigurationError, match="Linear is and contains no layer"):
        optimizer.step_in_backward(network.body)
    with pytest.raises(ConfigurationError, match="not among"):
        Adam(network.body.parameters()).step_in_backward(network)
    with pytest.raises(ConfigurationError, match="AdamW"):
        Adam(network.parameters(), weight_decay=0.1).step_in_backward(network)
    assert network.head.row_updates is None
    network.head.bias.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="frozen"):
        Adam(network.parameters()).step_in_backward(network)


def test_rows_are_settled_when_the_optimizer_goes_or_another_comes():
    weights = []
    for ending in ("flush", "delete", "replace"):
        network, optimizer = make("adam")
        train(network, optimizer, 10)
        late = network.head.weight.detach().clone()
        if ending == "flush":
            optimizer.flush()
        elif ending == "delete":
            del optimizer
            gc.collect()
        else:
            other = SGD(network.parameters(), lr=0.0)
            other.bind(network.head.weight)
            other.bind(network.head.bias)
            optimizer.flush()
        weights.append(network.head.weight.detach().clone())
        assert not torch.equal(weights[-1], late)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_loaded_weights_owe_nothing():
    network, optimizer = make("adam")
    train(network, optimizer, 10)
    other = Network().state_dict()
    network.load_state_dict(other)
    optimizer.flush()
    assert torch.equal(network.head.weight, other["head.weight"])


def test_a_model_that_changes_its_type_has_caught_up():
    network, optimizer = make("adam")
    train(network, optimizer, 10)
    late = network.head.weight.detach().clone()
    network.double()
    assert not torch.equal(network.head.weight, late.double())
    optimizer.state_dict()


def test_it_ends_with_the_optimizer_or_by_hand():
    network, optimizer = make("adam")
    network.head.row_updates = None
    train(network, optimizer, 2)
    assert network.head.weight.grad is not None
    optimizer.step_in_backward(network)
    del optimizer
    gc.collect()
    with pytest.raises(ConfigurationError, match="no longer exists"):
        network(batch(0)[0], target=batch(0)[1])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_not_updated(clone):
    network, optimizer = make("adam")
    train(network, optimizer, 3)
    other = clone(network)
    assert other.head.row_updates is None
    assert clone(network.head.row_updates) is None
    assert network.head.row_updates is not None
    other(batch(0)[0], target=batch(0)[1]).loss.backward()
    assert other.head.weight.grad is not None
