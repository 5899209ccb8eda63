import subprocess
import sys

import torch

from qcompile.uncompiled import uncompiled

TRAIN = """
import sys
import numpy, scipy.sparse, torch
import qcompile
from qcompile.nn import LSHLinear, SparseLinear
from qcompile.training.build import build_model

first, last = SparseLinear(30, 8), LSHLinear(8, 50, config=qcompile.LSH(active=10))
optimizer = qcompile.optim.Adam([*first.parameters(), *last.parameters()])
optimizer.step_in_backward(first, last)
features = scipy.sparse.random(4, 30, 0.5, "csr", numpy.float32)
for _ in range(2):
    last(first(features), torch.arange(4)[:, None]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""


@uncompiled
def compiling() -> bool:
    """Whether it is run by the compiler."""
    return torch.compiler.is_compiling()


def test_training_does_not_load_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_compiler_leaves_the_function_alone() -> None:
    def network(x: torch.Tensor) -> tuple[torch.Tensor, bool, bool]:
        inner = compiling()
        return x * 2, torch.compiler.is_compiling(), inner

    doubled, outside, inside = torch.compile(network, backend="eager")(torch.ones(3))
    assert outside
    assert not inside
    assert doubled.tolist() == [2, 2, 2]


def test_a_plain_call_is_the_function_itself() -> None:
    assert not compiling()
    assert compiling.__doc__ == "Whether it is run by the compiler."
