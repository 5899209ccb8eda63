"""Fused models under DDP and FSDP2, on two ranks, against the same model in one process."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import qcompile
from qcompile.fused import fusion_of
from qcompile.nn import QuadraticLinear
from qcompile.triton_kernels.quadratic_linear.op import fused_quadratic_linear

STEPS = 2
BATCH = torch.linspace(-1, 1, 8 * 6).reshape(8, 6)


class Gated(nn.Module):
    """A gated layer, whose own forward must not run once it is fused."""

    forbidden = False

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x):
        assert not Gated.forbidden, "the original forward runs"
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Direct(nn.Module):
    """Calls the operator that a GPU would run, which is plain torch here."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        weights, biases = zip(*((m.weight, m.bias) for m in (self.a, self.b, self.c)), strict=True)
        options = ("Quadra", "none", "relu", "auto", torch.is_grad_enabled())
        return fused_quadratic_linear(x, *weights, *biases, *options)[0]


def plain():
    torch.manual_seed(3)
    return nn.Sequential(Gated(), QuadraticLinear(6, 6, form="Quadra"), Direct(), Gated())


def trained(model, batch, whole):
    """Return the parameters after some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch).float().square().mean()
        loss.backward()
        optimizer.step()
    return {name: whole(parameter.detach()).clone() for name, parameter in model.named_parameters()}


def gathered(parameter):
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def distributed(model, how):
    mesh = init_device_mesh("cpu", (2,))
    if how == "ddp":
        return DistributedDataParallel(model)
    policy = MixedPrecisionPolicy(torch.bfloat16) if how == "lowered" else MixedPrecisionPolicy()
    # Layers are gathered when they are called, which the operator does not do.
    layers = [layer for block in model if isinstance(block, Gated) for layer in block.children()]
    for child in layers if how == "layers" else model:
        fully_shard(child, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def step_on_a_rank(group, how):
    model = qcompile.transform(plain(), fuse=True, inplace=True)
    fused = [module for module in model if fusion_of(module)]
    assert len(fused) == 3
    wrapped = distributed(model, how)
    Gated.forbidden = how != "layers"  # layers of their own are called, for their hooks
    try:
        found = trained(wrapped, BATCH.chunk(2)[group.rank], gathered)
    finally:
        Gated.forbidden = False
    return {name.removeprefix("module."): value for name, value in found.items()}


@pytest.mark.parametrize("how", ["ddp", "blocks", "layers", "lowered"])
def test_training_is_that_of_one_process(spawn, how):
    first, second = spawn(2, step_on_a_rank, how)
    wanted = trained(plain(), BATCH, copy.copy)
    tolerance = 2e-2 if how == "lowered" else 1e-6
    start = dict(plain().named_parameters())
    assert first.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=0, atol=tolerance, msg=name)
        assert (first[name] - start[name]).abs().max() > 0, name
