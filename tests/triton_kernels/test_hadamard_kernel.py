"""The Triton kernels: run by Triton's interpreter, and compiled for a GPU that need not be here."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# Runs in a process of its own: Triton reads TRITON_INTERPRET when it is imported.
INTERPRETED = """
import torch
from qcompile.triton_kernels.hadamard.kernel import launch_hadamard, launch_hadamard_backward
from qcompile.triton_kernels.hadamard.kernel import BLOCK
torch.manual_seed(0)
# The interpreter truncates to bf16 where hardware rounds, hence twice its unit.
units = {torch.float64: 1e-15, torch.float32: 2e-7, torch.float16: 1e-3, torch.bfloat16: 2 * 2**-8}
GUARD = 7.0
for dtype, unit in units.items():
    for count in (1, 2, 7, 31, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17, 3 * BLOCK):
        a, b, c, g = (torch.randn(count).to(dtype) for _ in range(4))
        exact = [x.double() for x in (a, b, c, g)]
        # Elements past the end must stay untouched.
        storages = [torch.full((count + 64,), GUARD, dtype=dtype) for _ in range(4)]
        with_c, without_c, da, db = (s[:count] for s in storages)
        launch_hadamard(a, b, c, with_c)
        launch_hadamard(a, b, None, without_c)
        launch_hadamard_backward(g, a, b, da, db)
        A, B, C, G = exact
        pairs = ((with_c, A * B + C), (without_c, A * B), (da, G * B), (db, G * A))
        for got, wanted in pairs:
            scale = A.abs() * B.abs() + C.abs() + G.abs() * (A.abs() + B.abs())
            assert ((got.double() - wanted).abs() <= unit * scale).all(), (dtype, count)
        assert all((s[count:] == GUARD).all() for s in storages), (dtype, count)
empty = torch.empty(0)
launch_hadamard(empty, empty, None, empty)
launch_hadamard_backward(empty, empty, empty, empty, empty)
print("checked")
"""

# In its own process too, so that no environment variable of the caller turns the interpreter on.
COMPILED = """
import sys
sys.modules["triton"] = None  # the layers can be imported without triton
import qcompile.nn
import qcompile.triton_kernels.hadamard.op
del sys.modules["triton"]
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qcompile.triton_kernels.hadamard import kernel
forward = ["a_ptr", "b_ptr", "c_ptr", "y_ptr"]
backward = ["grad_ptr", "a_ptr", "b_ptr", "da_ptr", "db_ptr"]
def check(function, pointers, constants, element):
    constants |= {"widen": element in ("bf16", "fp16"), "block": kernel.BLOCK}
    signature = dict.fromkeys(pointers, "*" + element) | {"count": "i64"}
    signature |= dict.fromkeys(constants, "constexpr")
    # Allocations and most sizes are multiples of 16; Triton finds this out at a launch.
    hints = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers) + 1)}
    source = ASTSource(function, signature, constants, hints)
    binary = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernel.NUM_WARPS}
    )
    ptx = binary.asm["ptx"]
    assert len(binary.asm["cubin"]) > 0
    assert "sm_90" in ptx
    assert ".local" not in ptx, f"{element}: registers spill to local memory"
    vector = "ld.global.v4.b32" if element != "fp64" else "ld.global.v2.b64"
    assert vector in ptx, f"{element}: loads are not 16 bytes wide"
for element in ("fp64", "fp32", "bf16", "fp16"):
    check(kernel.hadamard_kernel, forward, {"has_c": True}, element)
    check(kernel.hadamard_backward_kernel, backward, {}, element)
print("checked")
"""


def run(script: str, **environment: str) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "checked"


def test_interpreted_kernels_equal_float64():
    run(INTERPRETED, TRITON_INTERPRET="1")


def test_kernels_compile_for_sm_90(tmp_path):
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
