"""What the element-wise kernels are launched with, for the table of compiled kernels."""

from collections.abc import Iterator
from typing import Any

from offline import Kernel

from qcompile.triton_kernels.elementwise.walk import ELEMENTS, NUM_WARPS, Walk

ELEMENT_TYPES = ("fp64", "fp32", "bf16")
"""fp16 is computed as bf16 is."""

CONSTANTS = ("scale", "shift", "slope", "offset", "mean", "rstd", "partial", "plain", "projected")
"""Tensors in the type that is computed in."""


def walks(element: str) -> dict[str, Walk]:
    """Return a walk of each kind, whose sizes are those of ordinary layers."""
    elements = ELEMENTS // 2 if element == "fp64" else ELEMENTS
    return {
        "flat": Walk("flat", 1, 1 << 20, 1, 0, 16, elements),
        "last": Walk("last", 1 << 14, 64, 64, 1, 16, elements),
        "planes": Walk("planes", 128, 1 << 10, 64, 1, 16, elements),
    }


def arguments(function: Any, element: str, walk: Walk, constants: dict[str, Any]) -> dict[str, Any]:
    """Return what a launch passes: types of pointers and numbers, and the constants."""
    known = walk.sizes() | constants
    computed = "fp64" if element == "fp64" else "fp32"
    found: dict[str, Any] = {}
    for parameter in function.params:
        name = parameter.name
        if parameter.is_constexpr:
            found[name] = known[name]
        elif name.endswith("_ptr"):
            kind = computed if name.removesuffix("_ptr") in CONSTANTS else element
            found[name] = f"*{kind}:16"
        else:
            found[name] = "i32"
    return found


def variants(
    folder: str, function: Any, constants: dict[str, dict[str, Any]], kinds: tuple[str, ...]
) -> Iterator[Kernel]:
    """Yield a kernel for each type, walk and set of constants.

    Tests compile the last of the constants, in bf16 and with the kinds that need most registers.
    """
    chosen = {("bf16", next(reversed(constants)), kind) for kind in kinds if kind != "planes"}
    for element in ELEMENT_TYPES:
        for kind in kinds:
            for name, own in constants.items():
                yield Kernel(
                    f"{folder}/{function.__name__}/{name}/{kind}/{element}",
                    function,
                    arguments(function, element, walks(element)[kind], own),
                    num_warps=NUM_WARPS,
                    quick=(90,) if (element, name, kind) in chosen else (),
                    wide=True,
                )
