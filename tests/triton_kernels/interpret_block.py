"""The kernels of normalised blocks in Triton's interpreter, and the layers that use them."""

import copy
import sys
from pathlib import Path

import torch
from guarded import Guarded
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))
from memory_levels import inputs, layer, randomised, step

from qcompile.config import NORMS
from qcompile.nn import QuadraticBlock
from qcompile.nn.quadratic import fused
from qcompile.triton_kernels.batch_norm_block import passes
from qcompile.triton_kernels.batch_norm_block.passes import (
    BatchNorm,
    Block,
    BlockBackward,
    block_forward,
    computed_in,
)
from qcompile.triton_kernels.elementwise import walk
from qcompile.triton_kernels.elementwise.activations import ACTIVATE
from qcompile.triton_kernels.elementwise.terms import Branches, Term

FORMS = [  # product, batch norms of branches and of the whole (batch, evaluation, none), end
    ("pair", "bbbb", "relu"),
    ("pair", "bbb.", "silu"),
    ("pair", "...b", "gelu"),
    ("pair", "b.b", "relu"),
    ("square", "bbe", "tanh"),
    ("none", "eb.", "relu"),
    ("none", "bb", "sigmoid"),
    ("pair", "eeee", "gelu_tanh"),
]
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,  # the interpreter truncates
}


def batch_norm(kind, channels, dtype, affine):
    if kind == ".":
        return None
    weight, bias = torch.randn(2, channels, dtype=dtype) if affine else (None, None)
    running = torch.randn(channels, dtype=dtype), torch.rand(channels, dtype=dtype) + 0.5
    return BatchNorm(kind == "b", weight, bias, running, 0.3, 1e-3)


def by_autograd(block, values, grad):
    """Return output, new running statistics, gradients of the batch norms and of the values."""
    leaves = [x.detach().clone().double().requires_grad_() for x in values]
    parameters, running = [], []

    def normalise(norm, x):
        if norm is None:
            return x
        own = [
            None if p is None else p.to(torch.float64, copy=True).requires_grad_()
            for p in (norm.weight, norm.bias)
        ]
        moved = [p.double().clone() for p in norm.running]
        parameters.extend(p for p in own if p is not None)
        running.extend(moved if norm.batch else [])
        return nn.functional.batch_norm(x, *moved, *own, norm.batch, norm.momentum, norm.eps)

    normal = [normalise(norm, x) for norm, x in zip(block.norms, leaves, strict=True)]
    y = normal[0]
    if block.term.product == "pair":
        y = y * normal[1]
    elif block.term.product == "square":
        y = y * y
    if len(normal) > 1 + (block.term.product == "pair"):
        y = y + normal[-1]
    y = ACTIVATE[block.term.activation](normalise(block.outer, y))
    y.backward(grad.double())
    return [y.detach(), *running, *(p.grad for p in parameters), *(x.grad for x in leaves)]


def case(shape, dtype, layout, form, affine=True):
    """Compare output, gradients and running statistics of one block with float64."""
    product, norms, activation = form
    guarded, what = Guarded(), (shape, dtype, layout, form)
    values = [guarded.make(shape, dtype, layout) for _ in norms[1:]]
    for place, x in enumerate(values):
        if layout != "expanded":
            x.mul_(0.5 + place).add_(3 * place)
    grad = guarded.make(shape, dtype, layout)
    made = [batch_norm(kind, shape[1], computed_in(dtype), affine) for kind in norms]
    block = Block(Term(product, activation=activation), tuple(made[:-1]), made[-1], 1)
    pair = product == "pair"
    branches = Branches(
        values[0], values[1] if pair else None, values[-1] if len(values) > 1 + pair else None
    )
    exact = by_autograd(block, values, grad)
    y, statistics, running = block_forward(block, branches, overwrite=False)
    backward = BlockBackward(block, branches, statistics)
    found = [y, *running]
    backward.take(grad)
    for slot, norm in enumerate(block.slots):
        if norm is not None and affine:
            found += [backward.projected[slot], backward.plain[slot]]
    letters = "".join(x for x in "abc" if getattr(branches, x) is not None)
    beside = backward.write(letters, overwrite=False)
    found += beside.values()
    part = backward.output(slice(1, 3)).double()
    tolerance = 4 * TOLERANCES[dtype]
    torch.testing.assert_close(part, y[1:3].double(), rtol=tolerance, atol=tolerance)
    for got, wanted in zip(found, exact, strict=True):
        error = (got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        assert error <= TOLERANCES[dtype], (what, error)
    if layout != "expanded":
        over = backward.write(letters, overwrite=True)
        assert all(torch.equal(x, over[letter]) for letter, x in beside.items()), what
    guarded.check(what)


def check_blocks():
    """Every form in float64, some in every type, over one tile and many, in chunks and without."""
    for number, form in enumerate(FORMS):
        layout = ("contiguous", "channels_last")[number % 2]
        case((3, 2, 2, 3), torch.float64, layout, form, affine=number % 3 != 1)
    for dtype, layout in (
        (torch.float32, "channels"),
        (torch.float16, "part of channels_last"),
        (torch.bfloat16, "transposed"),
    ):
        case((3, 2, 2, 3), dtype, layout, FORMS[0])
    case((4, 5), torch.float32, "contiguous", FORMS[0])
    walk.CHUNKS = 3
    case((12, 2, 9, 9), torch.float64, "contiguous", FORMS[0])
    case((70, 33), torch.float32, "columns", FORMS[0])


def check_large_means():
    """Means far above the deviation cost no accuracy of the variance."""
    x = torch.randn(64, 3, dtype=torch.float64) + torch.tensor([0.0, 1e3, 1e4]).double()
    norm = BatchNorm(True, None, None, (torch.zeros(3), torch.ones(3)), 1.0, 0.0)
    block = Block(Term("none"), (norm,), None, 1)
    x = x.float()
    _, _, (mean, variance) = block_forward(block, Branches(x, None, None), overwrite=False)
    torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=1e-6, atol=1e-6)
    # The mean of a chunk has half a unit of 10⁴ in its last place, 5e-4 deviations.
    torch.testing.assert_close(variance.double(), x.double().var(0), rtol=5e-4, atol=0)


def agree(pair, x, level):
    """Compare a step of two equal blocks, at level 0 and at another."""
    plain, other = pair
    other.memory = level
    expected, right, buffers = step(plain, x)
    got, gradients, own = step(other, x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for name, gradient in right.items():
        if gradient is None:
            assert gradients[name] is None, name
            continue
        largest = gradient.abs().max().clamp(min=1).item()
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-9, atol=1e-9 * largest, msg=name
        )
    for name, buffer in buffers.items():
        torch.testing.assert_close(own[name], buffer, rtol=1e-9, atol=1e-9, msg=name)


def check_layers():
    """Hybrid back-propagation by kernels is level 0's step up to rounding."""
    used = []

    def takes(plan, x, values, *, backward=False):
        used.append(plan)
        return plan.activation in fused._ACTIVATIONS

    fused.takes, fused._passes = takes, lambda plan, x: (passes, {})
    for row, form in enumerate(("T1L", "T3", "T2_4", "Quadra")):
        for level, dims in ((1, 0), (3, 2)):  # each form and each place of batch norms at both
            norms = NORMS[(row + level // 2) % 4]
            pool = nn.MaxPool2d(2) if dims and row % 3 else None
            fused.POOL_ELEMENTS = (400, 1 << 20)[row % 2]
            end = None if (row + level) % 3 == 0 else nn.ReLU()
            made = randomised(QuadraticBlock(layer(dims, form), norms, end, pool))
            both = [copy.deepcopy(made) for _ in range(2)]
            agree(both, inputs(dims), level)
    frozen = randomised(QuadraticBlock(layer(2, "Quadra"), "both", nn.GELU()))
    frozen.norm_b = None
    frozen.norm.eval()
    for level in (1, 3):
        agree([copy.deepcopy(frozen) for _ in range(2)], inputs(2), level)
    assert used


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    check_blocks()
    check_large_means()
    check_layers()
    print("checked")
