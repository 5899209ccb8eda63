"""Hybrid back-propagation under autocast, checkpointing, compilation, DDP and transforms."""

import copy

import pytest
import torch
from memory_levels import LEVELS, agree, at_level, inputs, layer, step
from torch import nn
from torch.utils.checkpoint import checkpoint

from qcompile.config import FORMS
from qcompile.nn import (
    QuadraticBlock,
    QuadraticLinear,
)

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMS)
def test_autocast(form, level):
    block = QuadraticBlock(layer(2, form, torch.float32, bias=False), "both", nn.ReLU())
    model = nn.Sequential(block, nn.Flatten(), QuadraticLinear(6 * 42, 3, form=form))
    twin = at_level(model, level)
    x = inputs(2, torch.float32)
    results = []
    for module in (model, twin):
        context = torch.autocast("cpu", dtype=torch.bfloat16)
        results.append(step(module, x, context=context))
    (expected, right, buffers), (got, gradients, own) = results
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)
    assert all(torch.equal(own[name], buffer) for name, buffer in buffers.items())
    exact = step(model, x)[1]
    for name, gradient in right.items():
        assert gradients[name].dtype == gradient.dtype
        errors = [(g - exact[name]).norm() for g in (gradient, gradients[name])]
        assert errors[1] <= 1.2 * errors[0] + 1e-2 * exact[name].norm() + 1e-3, name


@pytest.mark.parametrize("level", LEVELS)
def test_scaled_losses_give_scaled_gradients(level):
    block = at_level(QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU()), level)
    x = inputs(2)
    plain, scaled = step(block, x)[1], step(block, x, scale=1024.0)[1]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(scaled[name], 1024 * gradient)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    scaler.scale(block(x).sum()).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["T1L", "T2_4", "Quadra"])
def test_channels_last(form, level):
    block = QuadraticBlock(layer(2, form, torch.float32, bias=False), "both", nn.ReLU())
    block = block.to(memory_format=torch.channels_last)
    x = inputs(2, torch.float32).to(memory_format=torch.channels_last)
    agree(block, x, level, rtol=1e-4)
    y = at_level(block, level)(x)
    assert y.stride() == block(x).stride()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_around_a_block(reentrant, level):
    block = QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU())

    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    x = inputs(2)
    twin = Around(at_level(block, level))
    for _ in range(2):
        expected, right, buffers = step(block, x)
        got, gradients, own = step(twin, x)
        assert torch.equal(got, expected)
        for name, buffer in buffers.items():  # counted once, which checkpointing level 0 does not
            assert torch.equal(own[f"inner.{name}"], buffer), name
        for name, gradient in right.items():
            if gradient is not None:
                torch.testing.assert_close(
                    gradients[name if name == "x" else f"inner.{name}"], gradient
                )


@pytest.mark.parametrize("level", LEVELS)
def test_backward_twice(level):
    block = at_level(QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU()), level)
    loss = block(inputs(2)).pow(2).sum()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in block.parameters() if p.grad is not None]
    loss.backward()
    second = [p.grad for p in block.parameters() if p.grad is not None]
    for once, twice in zip(first, second, strict=True):
        torch.testing.assert_close(twice, 2 * once)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        block = QuadraticBlock(layer(2, "Quadra"), "both", nn.ReLU())
        x = inputs(2)
        expected = step(copy.deepcopy(block), x)[1]
        parallel = nn.parallel.DistributedDataParallel(at_level(block, 3))
        gradients = step(parallel, x)[1]
        for name, gradient in expected.items():
            key = name if name == "x" else f"module.{name}"
            if gradient is not None:
                torch.testing.assert_close(gradients[key], gradient)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["T1", "T2_4", "Quadra"])
def test_compiled_blocks(form, level):
    block = QuadraticBlock(layer(2, form, torch.float32, bias=False), "both", nn.ReLU())
    twin = at_level(block, level)
    twin.compile(fullgraph=True, backend="aot_eager")
    x = inputs(2, torch.float32)
    expected, right, buffers = step(block, x)
    got, gradients, own = step(twin, x)
    torch.testing.assert_close(got, expected)
    for name, buffer in buffers.items():
        assert torch.equal(own[name], buffer), name
    for name, gradient in right.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_traces_and_transforms_see_plain_operators(level):
    block = QuadraticBlock(layer(0, "Quadra"), "none", nn.Tanh(), memory=level)
    x = inputs(0)
    assert torch.equal(torch.fx.symbolic_trace(block)(x), block(x))
    program = torch.export.export(block, (x,))
    assert torch.equal(program.module()(x), block(x))
    jacobian = torch.func.vmap(torch.func.jacrev(block))(x)
    torch.testing.assert_close(jacobian, torch.func.vmap(torch.func.jacrev(at_level(block, 0)))(x))
