"""Sparse layers in loops as people write them: clipping, accumulation, AMP, checkpoints, saving."""

import copy
import dataclasses
import io

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy import sparse
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import qcompile
from qcompile import LSH
from qcompile.errors import DataError
from qcompile.nn import LSHHidden, LSHLinear, SparseLinear
from qcompile.optim import SGD, Adam, AdamW

F, D, H, N = 50, 13, 40, 90
CONFIG = LSH(tables=8, hashes=2, bucket=16, active=12, negatives=20, rehash=3, rehash_decay=0.2)


class Classifier(nn.Module):
    """A sparse first layer, a sparse hidden layer and a sparse output layer."""

    def __init__(self, dtype=torch.float32, mode="lsh"):
        super().__init__()
        torch.manual_seed(0)
        config = dataclasses.replace(CONFIG, mode=mode)
        self.first = SparseLinear(F, D, dtype=dtype)
        self.hidden = LSHHidden(D, H, config=config, dtype=dtype)
        self.dense = nn.Linear(H, D)
        self.head = LSHLinear(D, N, config=config, dtype=dtype)

    def forward(self, features, target=None):
        hidden = self.hidden(self.first(features).relu()).relu()
        return self.head(self.dense(hidden).relu(), target)


def batch(seed, examples=11):
    random = np.random.default_rng(seed % 4)
    features = sparse.random(examples, F, 0.2, "csr", np.float32, random)
    return features, torch.from_numpy(random.integers(0, N, examples))


def train(model, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss = model(*batch(step)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Module(Classifier):
    """As written for Lightning, whose trainer is the loop below."""

    def training_step(self, batch, batch_index):
        return self(*batch).loss

    def configure_optimizers(self):
        sparse_layers = [*self.first.parameters(), *self.hidden.parameters()]
        rest = [*self.dense.parameters(), *self.head.parameters()]
        return [Adam(sparse_layers, lr=0.02), Adam(rest, lr=0.02)]


def test_a_lightning_style_loop_learns():
    module = Module()
    optimizers = module.configure_optimizers()
    losses = []
    for step in range(60):
        loss = module.training_step(batch(step), step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.5 * losses[0]


@pytest.mark.parametrize("mode", ["lsh", "sampled", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_mode_and_storage_learns_in_one_backward_pass(mode, dtype):
    model = Classifier(dtype, mode)
    optimizer = AdamW(model.parameters(), lr=0.02)
    optimizer.step_in_backward(model)
    losses = train(model, optimizer, 60)
    assert np.mean(losses[-4:]) < 0.7 * losses[0]
    assert all(p.grad is None for p in (model.head.weight, model.hidden.weight, model.first.weight))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SGD", {"lr": 2.0}),
        ("SparseAdam", {"lr": 0.02}),
        ("Adagrad", {"lr": 0.05}),
        ("AdamW", {"lr": 0.02}),
        ("RMSprop", {"lr": 0.005}),
    ],
)
def test_torch_optimisers_train_it(kind, options):
    model = Classifier()
    takes_rows = kind in ("SGD", "SparseAdam", "Adagrad")
    for layer in (model.first, model.hidden, model.head):
        layer.sparse_grad = takes_rows
    biases = [model.first.bias, *model.dense.parameters()]
    rows = [p for p in model.parameters() if all(p is not other for other in biases)]
    optimizers = [getattr(torch.optim, kind)(rows, **options), torch.optim.SGD(biases, lr=0.1)]
    losses = []
    for step in range(60):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = model(*batch(step)).loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.8 * losses[0]


def test_an_optimiser_that_takes_no_rows_says_so():
    model = Classifier()
    model(*batch(0)).loss.backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        torch.optim.AdamW(model.parameters()).step()


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
@pytest.mark.parametrize("repeated", [False, True])
def test_gradients_are_clipped_by_their_norm(norm_type, repeated):
    model = Classifier()
    model(*batch(0)).loss.backward()
    if repeated:  # accumulated, rows occur twice
        model(*batch(1)).loss.backward()
    before = torch.cat([p.grad.to_dense().flatten() for p in model.parameters()])
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01, norm_type)
    after = torch.cat([p.grad.to_dense().flatten() for p in model.parameters()])
    assert torch.allclose(norm, torch.linalg.vector_norm(before, norm_type))
    assert torch.allclose(after, before * 0.01 / (norm + 1e-6), atol=1e-7)
    assert model.head.weight.grad.is_sparse
    with pytest.raises(NotImplementedError, match="positive order"):
        torch.linalg.vector_norm(model.head.weight.grad, 0)


def test_accumulated_gradients_are_those_of_both_batches():
    model = Classifier(mode="full")
    parts = []
    for seed in (0, 1):
        model.zero_grad()
        model(*batch(seed)).loss.backward()
        parts.append([p.grad.to_dense() for p in model.parameters()])
    model.zero_grad()
    for seed in (0, 1):
        model(*batch(seed)).loss.backward()
    for parameter, *two in zip(model.parameters(), *parts, strict=True):
        assert torch.allclose(parameter.grad.to_dense(), sum(two), atol=1e-6)
    weights = [p.detach().clone() for p in model.parameters()]
    Adam(model.parameters(), lr=0.01).step()
    assert not any(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_mixed_precision_with_a_gradient_scaler():
    model = Classifier()
    optimizer = Adam(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=10)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(*batch(step)).loss
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.5 * losses[0]


def test_a_gradient_that_overflows_skips_the_step():
    model = Classifier()
    optimizer = SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    scaler.scale(model(*batch(0)).loss * 1e38).backward()
    before = [p.detach().clone() for p in model.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**19
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_checkpoint_around_hidden_and_output_layer_changes_nothing(reentrant, fused):
    def run(checkpointed):
        model = Classifier()
        optimizer = Adam(model.parameters(), lr=0.01)
        if fused:
            optimizer.step_in_backward(model)

        def end(hidden, target):
            hidden = model.dense(model.hidden(hidden).relu()).relu()
            return model.head(hidden, target).loss ** 2

        losses = []
        for step in range(12):
            features, target = batch(step)
            hidden = model.first(features).relu()
            optimizer.zero_grad()
            if checkpointed:
                loss = checkpoint(end, hidden, target, use_reentrant=reentrant)
            else:
                loss = end(hidden, target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert model.head.steps == model.hidden.steps == 12
        return losses, [p.detach() for p in model.eval().parameters()]

    plain, repeated = run(False), run(True)
    assert plain[0] == repeated[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], repeated[1], strict=True))


class Checkpointed(nn.Module):
    """Its forward goes on behind the head, within a checkpoint."""

    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.reentrant = nn.Linear(D, D), nn.Linear(D, N), reentrant

    def end(self, x):
        return self.head(self.body(x).relu()).softmax(-1)

    def forward(self, x):
        if self.reentrant is None:
            return self.end(x)
        return checkpoint(self.end, x, use_reentrant=self.reentrant)


def test_a_transformed_model_with_a_checkpoint_inside():
    results = []
    for reentrant in (None, False):
        config = dataclasses.replace(CONFIG, where="head")
        model = qcompile.transform(Checkpointed(reentrant), sparse_output=config)
        optimizer = Adam(model.parameters(), lr=0.01)
        for step in range(5):
            optimizer.zero_grad()
            hidden = torch.randn(7, D, generator=torch.Generator().manual_seed(step))
            _, loss = model(hidden.requires_grad_(), target=torch.arange(7) + step)
            loss.backward()
            optimizer.step()
        results.append([loss, model.body.weight, model.eval().head.weight])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with set_checkpoint_early_stop(False):
        hidden = torch.randn(7, D, requires_grad=True)
        assert copy.deepcopy(model)(hidden).shape == (7, N)


def test_a_reentrant_checkpoint_inside_a_transformed_model_is_refused():
    config = dataclasses.replace(CONFIG, where="head")
    model = qcompile.transform(Checkpointed(True), sparse_output=config)
    hidden = torch.randn(7, D, requires_grad=True)
    with pytest.raises(DataError, match="use_reentrant=False"):
        model(hidden, target=torch.arange(7))
    model.eval()
    assert model(hidden, target=torch.arange(7)).loss > 0


@pytest.mark.parametrize("how", ["torch.save", "safetensors", "whole model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
def test_saving_and_resuming(how, dtype, fused, tmp_path):
    model = Classifier(dtype)
    optimizer = Adam(model.parameters(), lr=0.01)
    if fused:
        optimizer.step_in_backward(model)
    train(model, optimizer, 7)
    path = tmp_path / "model"
    resumed = Classifier(dtype)
    if how == "safetensors":
        safetensors.torch.save_model(model, path)
        assert safetensors.torch.load_model(resumed, path) == (set(), [])
    else:
        torch.save(model if how == "whole model" else model.state_dict(), path)
        loaded = torch.load(path, weights_only=how != "whole model")
        if how == "whole model":
            resumed = loaded
        else:
            resumed.load_state_dict(loaded)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = Adam(resumed.parameters())
    other.load_state_dict(torch.load(file, weights_only=True))
    if fused:
        other.step_in_backward(resumed)
    assert train(model, optimizer, 8, 7) == train(resumed, other, 8, 7)
    weights = zip(model.eval().parameters(), resumed.eval().parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
