"""The kernels of the Hadamard epilogue in Triton's interpreter."""

import pytest
from interpreter import SCRIPTS, interpret, run

pytest.importorskip("triton")

# In a process of its own, which has not imported anything yet.
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import qcompile.nn
import qcompile.triton_kernels.hadamard.op
print("checked")
"""


def test_interpreted_kernels_equal_float64():
    interpret("interpret_hadamard.py")


def test_layers_can_be_imported_without_triton():
    run("-c", WITHOUT_TRITON)


def test_graphs_for_a_gpu_hold_kernels_that_write_to_outputs_alone():
    run("-W", "ignore", str(SCRIPTS / "trace_kernels.py"))
