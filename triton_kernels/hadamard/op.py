"""The Hadamard epilogue as an operator."""

from qcompile.triton_kernels.hadamard.reference import hadamard_reference as hadamard

__all__ = ["hadamard"]
