"""The kernels of normalised blocks in Triton's interpreter."""

import pytest
from interpreter import interpret

pytest.importorskip("triton")


def test_interpreted_kernels_equal_float64():
    interpret("interpret_block.py")
