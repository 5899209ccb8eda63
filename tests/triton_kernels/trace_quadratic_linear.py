"""Traces the strategies on tensors that only claim to be on a GPU: a graph records the kernels.

In a process of its own: Triton is told of a GPU that is not here.
"""

from typing import Any

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget

from qcompile.triton_kernels.quadratic_linear.op import fused_quadratic_linear
from qcompile.triton_kernels.quadratic_linear.problem import Problem
from qcompile.triton_kernels.quadratic_linear.strategies import Strategy, backward, forward

NEEDS = frozenset(["x", "weight_a", "weight_c", "bias_a"])
LAUNCHES = {
    "fused/64x64x64x8/kept": [
        {"y_ptr", "factors_ptr", "kept_added_ptr"},
        {"dx_ptr"},
        {"first_out_ptr", "added_out_ptr", "sums_ptr"},
    ],
    "fused/64x64x64x8/narrow": [
        {"y_ptr"},
        {"dx_ptr"},
        {"first_out_ptr", "added_out_ptr", "sums_ptr"},
    ],
    "fused/128x64x64x8/library": [{"y_ptr"}, {"towards_ptr", "sums_ptr"}],
    "concat": [{"y_ptr"}, {"towards_ptr", "sums_ptr"}],
    "apart": [{"y_ptr"}, {"towards_ptr", "sums_ptr"}],
    "plain": [],
}
"""What each kernel of a forward and a backward pass writes to."""


class Hopper:
    """A GPU to compile for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def check(name: str) -> None:
    strategy = Strategy.parse(name)

    def run(x: Any, weight: Any, bias: Any) -> Any:
        weights, biases = dict.fromkeys("abc", weight), {"a": bias, "b": None, "c": bias}
        problem = Problem(x, weights, biases, "Quadra", "silu", "gelu")
        y, kept = forward(problem, strategy, True)
        return y, backward(problem, y, kept, strategy, NEEDS)

    def empty(*size: int) -> Any:
        return torch.empty(*size, device="cuda", dtype=torch.bfloat16)

    with FakeTensorMode(allow_non_fake_inputs=True):
        x, weight, bias = empty(33, 128), empty(64, 128), empty(64)
        graph = make_fx(dispatch_functionalize(run))(x, weight, bias)
        three = (weight, weight, weight, bias, None, bias)
        y = fused_quadratic_linear(x, *three, "Quadra", "silu", "gelu", name, True)[0]
        assert y.shape == (33, 64) and y.device.type == "cuda"
    written = [
        set(node.kwargs["tensors_to_clone"])
        for node in graph.graph.nodes
        if node.target is torch.ops.higher_order.triton_kernel_wrapper_functional
    ]
    assert written == LAUNCHES[name], (name, written)


if __name__ == "__main__":
    triton.runtime.driver.set_active(Hopper())
    for strategy in LAUNCHES:
        check(strategy)
