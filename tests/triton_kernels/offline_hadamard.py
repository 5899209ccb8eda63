"""The kernels of the Hadamard epilogue as they are launched."""

from walk_variants import variants

from qcompile.triton_kernels.elementwise.backward import backward_kernel
from qcompile.triton_kernels.elementwise.forward import forward_kernel
from qcompile.triton_kernels.elementwise.sums import sums_kernel

PLAIN = {
    "product": "pair",
    "has_c": True,
    "gate": "none",
    "activation": "none",
    "affine": "none",
    "has_outer": False,
    "batch": False,
    "want_a": True,
    "want_b": True,
    "want_c": False,
    "in_place": False,
    "has_mean": False,
    "of_outer": False,
}
GATED = PLAIN | {"gate": "silu", "activation": "gelu", "want_c": True}
FOLDED = PLAIN | {"affine": "full", "has_outer": True, "activation": "relu", "want_c": True}

KERNELS = [
    *variants("hadamard", forward_kernel, {"plain": PLAIN, "gated": GATED}, ("flat",)),
    *variants("hadamard", backward_kernel, {"plain": PLAIN, "gated": GATED}, ("flat",)),
    *variants("hadamard", forward_kernel, {"folded": FOLDED}, ("last", "planes")),
    *variants("hadamard", backward_kernel, {"folded": FOLDED}, ("last", "planes")),
    *variants("hadamard", sums_kernel, {"folded": FOLDED}, ("last", "planes")),
]
