import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from qcompile import LSH
from qcompile.distributed import (
    Group,
    Partition,
    ReplicatedSparseLinear,
    ShardedLSHLinear,
    check_replicas,
    distribute,
    sum_gradients,
)
from qcompile.errors import ConfigurationError
from qcompile.nn import LSHLinear, SparseLinear
from qcompile.optim import Adam

F, D, N, B = 61, 7, 53, 9


def batch(seed):
    random = np.random.default_rng(seed)
    features = sparse.random(B, F, 0.2, "csr", np.float32, random)
    features.data[:] = random.standard_normal(len(features.data))
    return features, torch.from_numpy(random.integers(0, N, (B, 2)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.input = SparseLinear(F, D)
        self.hidden = nn.Linear(D, D)
        self.unused = nn.Linear(D, 2)
        self.embedding = nn.Embedding(F, D, sparse=True)
        self.output = LSHLinear(D, N, config=LSH(mode="full"))

    def forward(self, features, labels):
        first = torch.from_numpy(features.indices[features.indptr[:-1]].astype(np.int64))
        hidden = torch.tanh(self.input(features)) + self.embedding(first)
        return self.output(torch.tanh(self.hidden(hidden)), labels)


def gradients(model):
    return {
        name: None if p.grad is None else p.grad.to_dense() for name, p in model.named_parameters()
    }


def one_backward(group, counts):
    torch.manual_seed(2)
    model = distribute(Net(), group).train()
    features, labels = batch(0)
    start = sum(counts[: group.rank])
    rows = slice(start, start + counts[group.rank])
    model(features[rows], labels[rows]).loss.backward()
    sum_gradients(model, group)
    return gradients(model)


@pytest.mark.parametrize("counts", [[4, 5], [3, 5, 1], [9, 0]])
def test_gradients_are_those_of_one_process_and_equal_on_all_ranks(spawn, counts):
    ranks = spawn(len(counts), one_backward, counts)
    torch.manual_seed(2)
    model = Net().train()
    model(*batch(0)).loss.backward()
    for name, expected in gradients(model).items():
        found = [rank[name] for rank in ranks]
        if name.startswith("output"):
            found = [torch.cat(found)]
        for value in found:
            if expected is None:
                assert value is None
                continue
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
            assert torch.equal(value, found[0])


def training(group, config, fused):
    torch.manual_seed(2)
    model = Net()
    model.output = LSHLinear(D, N, config=config)
    distribute(model, group).train()
    optimizer = Adam(model.parameters(), lr=0.01)
    if fused:
        optimizer.step_in_backward(model.input, model.output)
    losses = []
    for step in range(12):
        features, labels = batch(step)
        low, high = Partition(B, group.size).range(group.rank)
        optimizer.zero_grad()
        loss = model(features[low:high], labels[low:high]).loss
        loss.backward()
        sum_gradients(model, group)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    check_replicas(model, group)
    return losses, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("fused", [False, True])
def test_replicas_stay_the_same_bit_for_bit_and_follow_one_process(spawn, fused):
    one, two = (spawn(size, training, LSH(mode="full"), fused) for size in (1, 2))
    np.testing.assert_allclose(two[0][0], one[0][0], rtol=1e-4)
    assert two[0][0] == two[1][0]
    for name, value in two[0][1].items():
        if not name.startswith("output"):
            assert torch.equal(value, two[1][1][name]), name
            torch.testing.assert_close(value, one[0][1][name], rtol=1e-3, atol=1e-4)


def drifting(group):
    model = nn.Sequential(nn.Linear(3, 2))
    if group.rank == 1:
        with torch.no_grad():
            model[0].bias += 1e-6
    check_replicas(model, group)


def test_replicas_that_differ_are_named(spawn):
    for fine, message in spawn.outcomes(2, drifting):
        assert not fine
        assert "differ in 0.bias" in message


def sparse_bytes(group):
    layer = ReplicatedSparseLinear(SparseLinear(F, D), group).train()
    features, _ = batch(group.rank)
    before = group.bytes_sent
    output = layer(features)
    between = group.bytes_sent
    output.sum().backward()
    return features.nnz, between - before, group.bytes_sent - between


def test_examples_and_output_gradients_travel_in_place_of_the_weights_gradient(spawn):
    results = spawn(2, sparse_bytes)
    most = max(stored for stored, _, _ in results)
    for _, forward, backward in results:
        assert forward == 24 + 4 * B + 8 * most
        assert backward == 4 * B * D


def test_evaluation_of_the_first_layer_needs_no_other_rank():
    features, _ = batch(0)
    layer = SparseLinear(F, D)
    replicated = distribute(nn.Sequential(layer), _Absent())[0].eval()
    assert torch.equal(replicated(features), layer.eval()(features))
    assert replicated.weight is layer.weight


class _Absent:
    rank, size = 0, 2

    def table(self, *values):
        raise AssertionError("no collective is called for")


def test_a_model_that_is_one_layer_is_replaced():
    assert isinstance(distribute(LSHLinear(D, N), Group()), ShardedLSHLinear)


def test_statistics_of_batches_are_refused():
    with pytest.raises(ConfigurationError, match="use LayerNorm"):
        distribute(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), Group())
