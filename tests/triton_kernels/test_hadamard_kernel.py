"""The Triton kernels: run by Triton's interpreter, and compiled for a GPU that need not be here."""

import pytest
from interpreter import interpret, run

pytest.importorskip("triton")

# In a process of its own, so that no environment variable of the caller turns the interpreter on.
COMPILED = """
import inspect
import sys
sys.modules["triton"] = None  # the layers can be imported without triton
import qcompile.nn
import qcompile.triton_kernels.hadamard.op
del sys.modules["triton"]
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qcompile.triton_kernels.elementwise.backward import backward_kernel
from qcompile.triton_kernels.elementwise.forward import forward_kernel
from qcompile.triton_kernels.elementwise.walk import NUM_WARPS, Walk
def check(kernel, element, walk, constants):
    constants |= walk.sizes() | {"product": "pair", "has_c": True, "gate": "none"}
    constants |= {"activation": "gelu", "has_outer": False}
    names = list(inspect.signature(kernel.fn).parameters)
    types = {name: "*" + element if name.endswith("_ptr") else "i32" for name in names}
    types |= dict.fromkeys(("scale_ptr", "shift_ptr"), "*fp64" if element == "fp64" else "*fp32")
    fixed = {x: constants[x] for x in names if x in constants and x not in walk_sizes}
    types |= dict.fromkeys(fixed, "constexpr")
    # Allocations are multiples of 16; Triton finds this out at a launch.
    hints = {(names.index(x),): [["tt.divisibility", 16]] for x in names if x.endswith("_ptr")}
    source = ASTSource(kernel, types, fixed, hints)
    binary = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": NUM_WARPS}
    )
    ptx = binary.asm["ptx"]
    assert len(binary.asm["cubin"]) > 0
    assert "sm_90" in ptx
    assert ".local" not in ptx, f"{element}: registers spill to local memory"
    narrow = [x for x in ptx.split() if x.startswith("ld.global") and ".v" not in x]
    assert not narrow, f"{element}: loads are not 16 bytes wide: {narrow}"
walk_sizes = ("rows", "units", "groups", "column_tiles", "channels")
back = {"batch": False, "want_a": True, "want_b": True, "want_c": True, "in_place": True}
for element, elements in (("fp64", 512), ("fp32", 1024), ("bf16", 1024), ("fp16", 1024)):
    for affine, walk in (
        ("none", Walk("flat", 1, 4096, 1, 0, 16, elements)),
        ("full", Walk("last", 512, 96, 96, 1, 16, elements)),
    ):
        check(forward_kernel, element, walk, {"affine": affine})
        check(backward_kernel, element, walk, back | {"affine": affine})
print("checked")
"""


def test_interpreted_kernels_equal_float64():
    interpret("interpret_hadamard.py")


def test_kernels_compile_for_sm_90(tmp_path):
    run("-c", COMPILED, TRITON_CACHE_DIR=str(tmp_path))
