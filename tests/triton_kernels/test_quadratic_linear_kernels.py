"""The kernels of quadratic linear layers in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_interpreted_kernels_equal_float64():
    # In a process of its own: Triton reads TRITON_INTERPRET when it is imported.
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpret_quadratic_linear.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "cases checked" in done.stdout
