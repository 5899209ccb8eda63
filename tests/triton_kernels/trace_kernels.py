"""Traces the operators for a GPU that need not be here, as torch.compile does.

Each kernel of a graph must write to its own outputs alone: torch reads that from the kernel's code,
and copies every input of one that it cannot read.
"""

from typing import Any

import torch
import triton
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget

from qcompile.triton_kernels.batch_norm_block.op import (
    fused_batch_norm_block,
    fused_batch_norm_block_backward,
)
from qcompile.triton_kernels.bilinear.op import fused_bilinear, fused_bilinear_backward
from qcompile.triton_kernels.hadamard.op import fused_epilogue, fused_epilogue_backward


class Driver:
    """Says for which GPU to compile."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def epilogue(a: Any, b: Any, c: Any, grad: Any, of_channels: Any) -> list[Any]:
    constants = torch.stack([of_channels] * 4)
    options = ("pair", "silu", "gelu", 1, True)
    y = fused_epilogue(a, b, c, constants, constants, *options)
    return [
        y,
        *fused_epilogue_backward(grad, a, b, c, constants, constants, *options, [True] * 5),
    ]


def block(a: Any, b: Any, c: Any, grad: Any, of_channels: Any) -> list[Any]:
    each, running = [of_channels] * 4, [of_channels] * 8
    options = ("pair", "both", "relu", 1)
    y, *rest = fused_batch_norm_block([a, b, c], each, each, running, *options, 0.1, 1e-5)
    found = fused_batch_norm_block_backward(grad, [a, b, c], each, each, rest[:8], *options, 1e-5)
    return [y, *rest, *found]


def bilinear(a: Any, b: Any, c: Any, grad: Any, of_channels: Any) -> list[Any]:
    x, weight = (t.flatten(0, 2) for t in (a, b))
    weight = weight.narrow(0, 0, 16).view(2, 8, 8)
    y = fused_bilinear(x, weight)
    return [y, *fused_bilinear_backward(y, x, weight, True, True)]


def check(function: Any, kernels: int) -> None:
    with FakeTensorMode():
        tensors = [torch.empty(4, 32, 8, 8, device="cuda") for _ in range(4)]
        tensors = [x.to(memory_format=torch.channels_last) for x in tensors]
        tensors.append(torch.empty(32, device="cuda"))
        graph = aot_export_joint_simple(function, tensors, trace_joint=False)
    functional = torch.ops.higher_order.triton_kernel_wrapper_functional
    calls = [node for node in graph.graph.nodes if node.target is functional]
    assert len(calls) == kernels, len(calls)
    read = {"a_ptr", "b_ptr", "c_ptr", "grad_ptr", "weight_ptr", "bias_ptr", "old_mean_ptr"}
    read |= {"x_ptr", "w_ptr"}
    for call in calls:
        written = set(call.kwargs["tensors_to_clone"])
        assert written, call
        assert not written & read, written


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    check(epilogue, 1 + 5)
    check(block, 9 + 5)
    check(bilinear, 1 + 2)
    print("checked")
