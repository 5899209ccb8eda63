"""Programs drawn at random compute the same after fusing, whatever was fused in them."""

import copy

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcompile.passes.fx.fuse_hadamard import FuseHadamard

WIDTH, LAYERS = 4, 3
UNARY = {
    "relu": torch.relu,
    "silu": F.silu,
    "module": None,
    "identity": None,
    "square": torch.square,
    "negate": torch.neg,
    "first half twice": lambda v: torch.cat([v.chunk(2, -1)[0]] * 2, -1),
    "relu_": torch.relu_,
    "split": lambda v: (lambda p, q: torch.cat([p * F.silu(q)] * 2, -1))(*_halves(v)),
}
BINARY = {
    "mul": torch.mul,
    "add": torch.add,
    "mul_": lambda v, w: v.mul_(w),
    "add_": lambda v, w: v.add_(w),
}
steps = st.one_of(
    st.tuples(st.just("linear"), st.integers(0, LAYERS - 1), st.integers(0, 9)),
    st.tuples(st.sampled_from(sorted(UNARY)), st.integers(0, 9), st.just(0)),
    st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 9), st.integers(0, 9)),
)


def _halves(v):
    pieces = v.chunk(2, -1)
    return pieces[0], pieces[1]


class Program(nn.Module):
    """Computes value after value from those before, and returns the sum of the last three."""

    def __init__(self, program):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.module, self.identity = nn.Tanh(), nn.Identity()
        self.program = program

    def forward(self, x):
        values = [x.clone()]
        for kind, first, second in self.program:
            a = values[-1 - (second if kind == "linear" else first) % len(values)]
            if kind == "linear":
                values.append(self.layers[first](a))
            elif kind in BINARY:
                values.append(BINARY[kind](a, values[-1 - second % len(values)]))
            else:
                values.append((UNARY[kind] or getattr(self, kind))(a))
        return sum(values[-3:])


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=3, max_size=14))
def test_fused_programs_compute_the_same(program):
    model = Program(program).double()
    fused = FuseHadamard()(copy.deepcopy(model)).model
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), equal_nan=True)
    again = FuseHadamard()(fused)
    assert not again.modified
