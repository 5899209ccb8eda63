"""The kernels of normalised blocks as they are launched in training."""

from offline import Kernel
from walk_variants import ELEMENT_TYPES, variants

from qcompile.triton_kernels.elementwise.backward import backward_kernel
from qcompile.triton_kernels.elementwise.forward import forward_kernel
from qcompile.triton_kernels.elementwise.moments import finish_moments_kernel, moments_kernel
from qcompile.triton_kernels.elementwise.sums import (
    BLOCK_CHANNELS,
    BLOCK_CHUNKS,
    finish_kernel,
    sums_kernel,
)
from qcompile.triton_kernels.elementwise.walk import NUM_WARPS

BLOCK = {
    "product": "pair",
    "has_c": True,
    "gate": "none",
    "activation": "relu",
    "affine": "full",
    "batch": True,
    "has_outer": True,
    "has_mean": True,
    "of_outer": False,
    "want_a": True,
    "want_b": True,
    "want_c": True,
    "in_place": True,
    "store": True,
}
OF_OUTER = BLOCK | {"of_outer": True}
OF_ONE = BLOCK | {"product": "none", "has_c": False, "affine": "none", "store": False}
END = BLOCK | {"product": "none", "has_c": False, "has_outer": False}
WALKS = ("last", "planes")


def _finishing():
    for element in ELEMENT_TYPES[:2]:
        for function, constants in (
            (finish_kernel, {"has_norm": True}),
            (finish_moments_kernel, {"has_weight": True, "has_bias": True, "tracked": True}),
        ):
            known = constants | {"P": BLOCK_CHUNKS, "C": BLOCK_CHANNELS}
            arguments = {
                x.name: known[x.name]
                if x.is_constexpr
                else f"*{element}:16"
                if x.name.endswith("_ptr")
                else "i64"
                if x.name.endswith("_bits")
                else "i32"
                for x in function.params
            }
            yield Kernel(
                f"block/{function.__name__}/{element}",
                function,
                arguments,
                num_warps=NUM_WARPS,
                quick=(90,) if element == "fp32" else (),
            )


KERNELS = [
    *variants("block", moments_kernel, {"one": OF_ONE, "all": BLOCK}, WALKS),
    *variants("block", forward_kernel, {"end": END}, WALKS),
    *variants("block", sums_kernel, {"outer": OF_OUTER, "branches": BLOCK}, WALKS),
    *variants("block", backward_kernel, {"all": BLOCK}, WALKS),
    *_finishing(),
]
