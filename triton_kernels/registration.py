"""Registration of operators that launch Triton kernels, without importing triton to do so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import CustomOpDef, custom_op
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qcompile.triton_kernels.availability import has_triton


def kernel_op(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Register a function as an operator, as ``torch.library.triton_op`` does.

    That one imports triton and the compiler to read the function's source, which costs every
    program that imports this package half a second. Like there, the function itself is what fake
    tensors run and what a compiled graph is made of, so it must be traceable and launch kernels
    through :func:`launch`; ``torch.export`` keeps the operator as it is.

    Args:
        name: ``domain::operator``.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        operator = custom_op(name, mutates_args=())(function)
        operator.register_fake(function)
        from torch._subclasses.functional_tensor import FunctionalTensorMode

        def decompose(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
            from torch.export._trace import custom_triton_ops_decomposition_disabled

            if custom_triton_ops_decomposition_disabled():
                return mode.__torch_dispatch__(op, types, args, kwargs)
            with mode:
                return function(*args, **kwargs)

        operator.register_torch_dispatch(FunctionalTensorMode, decompose)
        return operator

    return register


FUSIBLE = (torch.float32, torch.float16, torch.bfloat16)
"""Types that kernels with matrix products compute in."""


def fusible(*tensors: Any) -> bool:
    """Return whether a kernel may compute a call, as far as its tensors and surroundings say.

    It may not for CPU tensors, float64, ``torch.func`` transforms, which see no custom gradients,
    ``torch.jit.trace`` and exports to ONNX, which need standard operators, and tensors that are
    several, like DTensor.
    """
    return (
        all(t.is_cuda and t.dtype in FUSIBLE for t in tensors)
        and has_triton()
        and not torch.jit.is_tracing()
        and not torch.onnx.is_in_onnx_export()
        and not torch._C._are_functorch_transforms_active()
        and not any(is_traceable_wrapper_subclass(t) for t in tensors)
    )


def launch(kernel: Any, grid: tuple[int, ...], x: torch.Tensor, **arguments: Any) -> None:
    """Launch a kernel on the device of x, or have a graph record it, if a compiler looks on."""
    plain = type(x) in (torch.Tensor, torch.nn.Parameter)
    launched = kernel if plain else torch.library.wrap_triton(kernel)
    if not x.is_cuda or not torch.cuda.is_initialized():  # interpreted, or traced without a GPU
        launched[grid](**arguments)
        return
    with torch.cuda.device_of(x):
        launched[grid](**arguments)
