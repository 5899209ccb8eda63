"""SparseLinear: gradients, kinds of batches, bad batches, training."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import SparseLinear
from qcompile.optim import SGD, Adam


def features(examples, width, entries, seed=0, dtype=np.float32):
    """A CSR batch whose rows may be empty and name a feature twice and in any order."""
    random = np.random.default_rng(seed)
    sizes = random.integers(0, entries + 1, examples)
    offsets = np.concatenate([[0], sizes.cumsum()])
    columns = random.integers(0, width, offsets[-1])
    values = random.normal(size=offsets[-1]).astype(dtype)
    return sparse.csr_matrix((values, columns, offsets), shape=(examples, width))


def dense(batch):
    result = np.zeros(batch.shape)
    rows = np.repeat(np.arange(batch.shape[0]), np.diff(batch.indptr))
    np.add.at(result, (rows, batch.indices), batch.data)
    return torch.from_numpy(result)


@settings(max_examples=30, deadline=None)
@given(
    examples=st.integers(0, 20),
    width=st.integers(1, 90),
    depth=st.integers(1, 150),
    entries=st.integers(0, 12),
    bias=st.booleans(),
    sparse_grad=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients(examples, width, depth, entries, bias, sparse_grad, half, seed):
    layer = SparseLinear(width, depth, bias, dtype=torch.bfloat16 if half else None)
    layer.sparse_grad = sparse_grad
    batch = features(examples, width, entries, seed)
    output = layer(batch)
    weight = layer.weight.detach().double()
    expected = dense(batch) @ weight
    if bias:
        expected += layer.bias.detach().double()
    assert output.dtype == torch.float32
    assert torch.allclose(output.double(), expected, atol=1e-5)
    scale = torch.randn(examples, depth)
    (output * scale).sum().backward()
    gradient = layer.weight.grad
    assert gradient.is_sparse == sparse_grad
    assert gradient.dtype == layer.weight.dtype
    expected = dense(batch).T @ scale.double()
    rounded = 2**-7 if half else 1e-5  # half a unit in the last place of bfloat16 is 2⁻⁸ at most
    assert torch.allclose(gradient.to_dense().double(), expected, rtol=rounded, atol=1e-5)
    if sparse_grad:
        assert gradient._indices()[0].tolist() == sorted(set(batch.indices.tolist()))
    if bias:
        assert torch.allclose(layer.bias.grad.double(), scale.double().sum(0), atol=1e-5)


def test_every_kind_of_batch_gives_the_same():
    layer = SparseLinear(30, 5)
    batch = features(6, 30, 7)
    batch.sum_duplicates()
    expected = layer(batch)
    wide = batch.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    mixed = batch.copy()
    mixed.indptr = mixed.indptr.astype(np.int64)
    spare = batch.copy()
    spare.data = np.append(spare.data, [np.nan] * 3)  # capacity beyond the last row's end
    spare.indices = np.append(spare.indices, [99] * 3).astype(np.int32)
    tensor = torch.from_numpy(batch.toarray()).to_sparse_csr()
    for same in (wide, mixed, spare, sparse.csr_array(batch), batch.astype(np.float64), tensor):
        assert torch.equal(layer(same), expected)
    counts = sparse.csr_matrix((batch != 0).astype(np.int64))
    assert torch.equal(layer(counts), layer(counts.astype(np.float32)))
    backwards = batch[:, ::-1][:, ::-1]
    assert torch.allclose(layer(backwards), expected, atol=1e-6)
    assert torch.allclose(layer(torch.from_numpy(batch.toarray())), expected, atol=1e-6)
    assert layer(batch[:0]).shape == (0, 5)
    assert torch.equal(layer(sparse.csr_matrix((2, 30))), layer.bias.expand(2, 5))


@pytest.mark.parametrize("seed", range(3))
def test_the_number_of_threads_does_not_matter(seed):
    results = []
    for threads in (1, 2, 3):
        torch.manual_seed(seed)
        layer = SparseLinear(500, 33)
        torch.set_num_threads(threads)
        try:
            output = layer(features(200, 500, 40, seed))
            output.square().sum().backward()
        finally:
            torch.set_num_threads(1)
        results.append((output, layer.weight.grad.to_dense(), layer.bias.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def csr(offsets, columns, values, width=10):
    """A matrix that scipy does not check."""
    matrix = sparse.csr_matrix((len(offsets) - 1, width), dtype=np.float32)
    matrix.indptr = np.array(offsets, np.int32)
    matrix.indices = np.array(columns, np.int32)
    matrix.data = np.array(values, np.float32)
    return matrix


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (csr([0, 1, 2], [3, 10], [1, 1]), "row 1 has feature 10, expected one from 0 to 9"),
        (csr([0, 2], [3, -1], [1, 1]), "row 0 has feature -1"),
        (csr([0, 0, 1], [3], [np.nan]), "row 1, feature 3: the value nan is not finite"),
        (csr([0, 1], [3], [np.inf]), "row 0, feature 3"),
        (sparse.csr_matrix([[0.0, 1e300] + [0.0] * 8]), "feature 1: the value inf is not finite"),
        (csr([0, 3, 2, 2], [3, 4], [1, 1]), "descend at row 1"),
        (csr([1, 2], [3, 4], [1, 1]), "begin with 0"),
        (csr([0, 5], [3], [1]), "end at 5"),
        (csr([0, 1], [3], [1], width=11), r"shape \[1, 11\], expected \[B, 10\]"),
        (sparse.csc_matrix((2, 10)), r"csc_matrix.*call \.tocsr\(\)"),
        (torch.eye(10).to_sparse(), "sparse_coo.*to_sparse_csr"),
        ([[1.0] * 10], "list"),
        (sparse.csr_matrix(np.eye(10, dtype=np.complex64)), "complex64"),
        (np.eye(10, dtype=np.float32), "ndarray"),
    ],
)
def test_bad_batches_are_refused(batch, message):
    with pytest.raises(DataError, match=message):
        SparseLinear(10, 3)(batch)


def test_other_bad_calls_are_refused():
    for wrong in ({"in_features": 0}, {"out_features": 0}, {"dtype": torch.float16}):
        with pytest.raises(ConfigurationError, match="SparseLinear"):
            SparseLinear(**{"in_features": 3, "out_features": 3, **wrong})
    with pytest.raises(DataError, match="float64 on cpu"):
        SparseLinear(10, 3).double()(features(2, 10, 2))
    with pytest.raises(DataError, match="on meta"):
        SparseLinear(10, 3, device="meta")(features(2, 10, 2))


def test_millions_of_features_cost_what_a_batch_has():
    layer = SparseLinear(3_000_000, 4)
    batch = csr([0, 2, 3], [2_999_999, 0, 5], [1, 2, 3], width=3_000_000)
    expected = torch.stack([layer.weight[2_999_999] + 2 * layer.weight[0], 3 * layer.weight[5]])
    assert torch.allclose(layer(batch), expected)
    layer(batch).sum().backward()
    assert layer.weight.grad._values().shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimiser", [Adam, SGD])
@pytest.mark.parametrize("fused", [True, False])
def test_training_equals_a_dense_layer(optimiser, fused, dtype):
    torch.manual_seed(0)
    layer = SparseLinear(60, 7, dtype=dtype)
    weight = layer.weight.detach().double().requires_grad_()
    bias = layer.bias.detach().double().requires_grad_()
    reference = getattr(torch.optim, optimiser.__name__)([weight, bias], lr=0.01)
    trained = optimiser(layer.parameters(), lr=0.01)
    if fused:
        trained.step_in_backward(layer)
    for step in range(40):
        batch = features(5, 60, 3, seed=step)
        target = torch.randn(5, 7, generator=torch.Generator().manual_seed(step))
        for optimizer in (trained, reference):
            optimizer.zero_grad()
        loss = (layer(batch) - target).square().sum()
        loss.backward()
        expected = (dense(batch) @ weight + bias - target.double()).square().sum()
        expected.backward()
        trained.step()
        reference.step()
        assert torch.allclose(loss.double(), expected, rtol=1e-3 if dtype == torch.float32 else 0.1)
    layer.eval()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert torch.allclose(layer.weight.double(), weight, atol=tolerance)


def test_copies_are_equal_and_alone():
    layer = SparseLinear(20, 3)
    optimizer = Adam(layer.parameters())
    optimizer.step_in_backward(layer)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.row_updates is None
        assert torch.equal(copied.weight, layer.weight)
    assert layer.row_updates is not None
    assert (
        repr(layer)
        == "SparseLinear(in_features=20, out_features=3, bias=True, dtype=torch.float32)"
    )
