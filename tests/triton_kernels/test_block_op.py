"""Normalised blocks as torch sees them, on a CPU: registration, gradients, errors."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from memory_levels import layer, randomised, step
from torch import nn

from qcompile.errors import ConfigurationError, DataError
from qcompile.nn import QuadraticBlock
from qcompile.triton_kernels.batch_norm_block.op import (
    batch_norm_block,
    fused_batch_norm_block,
    fused_batch_norm_block_backward,
)

FORMS = [  # product, values, batch norms, end
    ("pair", 3, "both", "silu"),
    ("pair", 2, "branch", "none"),
    ("square", 2, "outer", "tanh"),
    ("none", 2, "both", "gelu"),
    ("none", 1, "branch", "none"),
]


def tensors(form, affine=True, running=True, dtype=torch.float64):
    """Return values, weights, biases and running statistics."""
    _, count, norms, _ = form
    norms = count * (norms != "outer") + (norms != "branch")
    values = [torch.randn(4, 3, 2, dtype=dtype, requires_grad=True) for _ in range(count)]
    own = [
        [torch.randn(3, dtype=dtype, requires_grad=True) for _ in range(norms * affine)]
        for _ in range(2)
    ]
    return values, *own, [torch.rand(3, dtype=dtype) for _ in range(2 * norms * running)]


def options(form):
    product, _, norms, activation = form
    return product, norms, activation, 1


def by_torch(values, weights, biases, running, form):
    """Compute with torch's batch norms, which update the running statistics."""
    product, _, norms, activation = form
    slot = iter(range(len(weights)))

    def normalise(x):
        i = next(slot)
        moved = running[2 * i : 2 * i + 2]
        return F.batch_norm(x, *moved, weights[i], biases[i], training=True)

    wide = [normalise(x) for x in values] if norms != "outer" else values
    y = {"pair": lambda: wide[0] * wide[1], "square": lambda: wide[0] * wide[0]}.get(
        product, lambda: wide[0]
    )()
    y = y + wide[-1] if len(wide) > (2 if product == "pair" else 1) else y
    y = normalise(y) if norms != "branch" else y
    return y if activation == "none" else getattr(F, activation)(y)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_computes_what_torchs_batch_norms_do(form):
    values, weights, biases, running = tensors(form)
    moved = copy.deepcopy(running)
    product, norms, activation, _ = options(form)
    y = batch_norm_block(
        values, weights, biases, running, product=product, norms=norms, activation=activation
    )
    wanted = by_torch(values, weights, biases, moved, form)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(running, moved)
    every = [*values, *weights, *biases]
    right = torch.autograd.grad(wanted.pow(2).sum(), every)
    torch.testing.assert_close(torch.autograd.grad(y.pow(2).sum(), every), right)


@pytest.mark.parametrize(("form", "affine"), [(FORMS[0], True), (FORMS[2], False)], ids=str)
def test_operators_pass_opcheck(form, affine):
    values, weights, biases, running = tensors(form, affine, running=affine)
    torch.library.opcheck(
        fused_batch_norm_block, (values, weights, biases, running, *options(form), 0.1, 1e-5)
    )
    detached = [[x.detach() for x in group] for group in (values, weights, biases)]
    y, *rest = fused_batch_norm_block(*detached, [], *options(form), 0.1, 1e-5)
    torch.library.opcheck(
        fused_batch_norm_block_backward,
        (torch.randn_like(y), *detached, rest, *options(form), 1e-5),
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradients_of_first_and_second_order(form):
    values, weights, biases, _ = tensors(form)
    first, second = len(values), len(values) + len(weights)

    def function(*x):
        groups = list(x[:first]), list(x[first:second]), list(x[second:])
        return fused_batch_norm_block(*groups, [], *options(form), 0.1, 1e-5)[0]

    assert torch.autograd.gradcheck(function, (*values, *weights, *biases))
    assert torch.autograd.gradgradcheck(function, (*values, *weights, *biases))


def test_graphs_compute_the_same():
    values, weights, biases, running = tensors(FORMS[0])
    eager = batch_norm_block(values, weights, biases, copy.deepcopy(running), norms="both")
    compiled = torch.compile(batch_norm_block, fullgraph=True, backend="aot_eager")
    got = compiled(values, weights, biases, running, norms="both")
    torch.testing.assert_close(got, eager)
    every = [*values, *weights, *biases]
    right = torch.autograd.grad(eager.pow(2).sum(), every)
    torch.testing.assert_close(torch.autograd.grad(got.pow(2).sum(), every), right)


def test_types_under_autocast():
    values, weights, biases, running = tensors(FORMS[0], dtype=torch.float32)
    mixed = [values[0].bfloat16(), *values[1:]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = batch_norm_block(mixed, weights, biases, running, norms="both")
        assert y.dtype == torch.float32
        assert batch_norm_block(mixed[:1], product="none").dtype == torch.bfloat16
    with pytest.raises(DataError, match="values must be alike"):
        batch_norm_block(mixed, norms="both")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"product": "cube"}, "unknown product 'cube'"),
        ({"norms": "all"}, "unknown norms 'all'"),
        ({"product": "none"}, "takes 1 or 2 values, got 3"),
        ({"channels": 3}, "with a dimension 3 of channels"),
        ({"weights": [torch.ones(3)]}, "weights must have 3 tensors or none, got 1"),
        ({"biases": [torch.ones(2)] * 3}, r"biases must be \[3\] on cpu, got \(2,\)"),
        ({"values": [torch.randn(1, 3)] * 3}, "more than one value of each channel"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    given = {"values": [torch.randn(4, 3) for _ in range(3)]} | changes
    with pytest.raises((DataError, ConfigurationError), match=message):
        batch_norm_block(**given)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_kernels_on_a_gpu_equal_plain_torch(form):
    here = tensors(form)
    there = [[x.detach().cuda().requires_grad_(x.requires_grad) for x in g] for g in here]
    for call in (fused_batch_norm_block, torch.compile(fused_batch_norm_block)):
        wanted = fused_batch_norm_block(*here, *options(form), 0.1, 1e-5)
        got = call(*there, *options(form), 0.1, 1e-5)
        for x, y in zip(got, wanted, strict=True):
            torch.testing.assert_close(x.cpu(), y)
        right = torch.autograd.grad(wanted[0].pow(2).sum(), [x for g in here[:3] for x in g])
        found = torch.autograd.grad(got[0].pow(2).sum(), [x for g in there[:3] for x in g])
        for x, y in zip(found, right, strict=True):
            torch.testing.assert_close(x.cpu(), y)


@needs_gpu
@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("batch_norm", ["none", "branch", "both"])
@pytest.mark.parametrize("pool", [None, nn.MaxPool2d(2)])
@pytest.mark.parametrize("form", ["T1L", "T3", "T2_4", "Quadra"])
def test_hybrid_back_propagation_on_a_gpu(form, pool, batch_norm, level):
    block = randomised(QuadraticBlock(layer(2, form), batch_norm, nn.ReLU(), pool)).cuda()
    other = copy.deepcopy(block)
    other.memory = level
    x = torch.randn(5, 4, 7, 6, dtype=torch.float64, device="cuda")
    (y, right, buffers), (got, found, own) = step(block, x), step(other, x)
    torch.testing.assert_close(got, y)
    for name, gradient in right.items():
        torch.testing.assert_close(found[name], gradient)
    for name, buffer in buffers.items():
        torch.testing.assert_close(own[name], buffer)


@needs_gpu
def test_sums_are_the_same_bits_each_time():
    values, weights, biases, _ = tensors(FORMS[0], dtype=torch.float32)
    values = [torch.randn(64, 3, 33, device="cuda", requires_grad=True) for _ in values]
    weights, biases = ([x.detach().cuda().requires_grad_() for x in g] for g in (weights, biases))
    steps = []
    for _ in range(2):
        y = batch_norm_block(values, weights, biases, norms="both", activation="silu")
        steps.append(torch.autograd.grad(y.pow(2).sum(), [*values, *weights, *biases]))
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
