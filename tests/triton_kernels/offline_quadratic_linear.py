"""The kernels of ``triton_kernels/quadratic_linear`` as they are launched on aligned tensors."""

from collections.abc import Iterator
from typing import Any

import torch
from offline import CAPABILITIES, Kernel

from qcompile.triton_kernels.quadratic_linear import launch, tiles
from qcompile.triton_kernels.quadratic_linear.backward import (
    towards_input_kernel,
    towards_kernel,
    towards_weights_kernel,
)
from qcompile.triton_kernels.quadratic_linear.elementwise import (
    elementwise_backward_kernel,
    elementwise_kernel,
)
from qcompile.triton_kernels.quadratic_linear.forms import FORMS
from qcompile.triton_kernels.quadratic_linear.forward import forward_kernel

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that a block may have."""

ELEMENTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GATED = (("none", "none"), ("silu", "none"), ("gelu", "gelu_tanh"))
UNGATED = (("none", "none"), ("none", "gelu_tanh"))
ROLES = ("first", "second", "added")


def _branches(form: str) -> dict[str, bool]:
    spec = FORMS[form]
    return {
        "has_first": bool(spec.factors),
        "has_second": len(set(spec.factors)) == 2,
        "has_added": bool(spec.added),
    }


def _fitting(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in function.arg_names}


def _cases() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield form, element, precision of products, gate and activation."""
    for form in FORMS:
        for gate, activation in GATED if _branches(form)["has_second"] else UNGATED:
            yield form, "bf16", "ieee", gate, activation
            yield form, "fp32", "tf32", gate, activation
    yield "Quadra", "fp16", "ieee", "none", "none"
    yield "Quadra", "fp32", "ieee", "none", "none"


QUICK = {
    ("Quadra", "bf16", "none-none", "128x64x64x8"),
    ("Quadra", "bf16", "none-none", ""),
    ("T4", "fp32", "silu-none", "128x64x32x8"),
    ("T2_4", "bf16", "gelu-gelu_tanh", "64x32x64x4"),
}
"""Form, element, functions and tile of what the tests compile for sm_90."""


def _common(form: str, element: str, precision: str, gate: str, activation: str) -> dict[str, Any]:
    """Return every argument that some kernel has, but for tiles."""
    pointers = [f"{x}_ptr" for x in (*ROLES, "x", "y", "dx", "grad", "towards")]
    pointers += [f"{x}_bias_ptr" for x in ROLES] + [f"towards_{x}_ptr" for x in ROLES]
    steps = [f"{x}_row" for x in (*ROLES, "x", "y", "dx", "grad", "factors", "towards")]
    unit = [f"{x}_column" for x in (*ROLES, "x", "y", "grad")] + [f"{x}_bias_step" for x in ROLES]
    return {
        **dict.fromkeys(pointers, f"*{element}:16"),
        "sums_ptr": "*fp32:16",
        **dict.fromkeys((*steps, "towards_added_row", "part_step"), "i32:16"),
        **dict.fromkeys((*unit, "towards_added_column"), 1),
        **dict.fromkeys(("rows", "columns", "depth", "part_rows"), "i32:16"),
        **_branches(form),
        **dict.fromkeys((f"has_{x}_bias" for x in ROLES), True),
        "has_sums": True,
        "squares": FORMS[form].squares,
        "gate": gate,
        "activation": activation,
        "even": True,
        "precision": precision,
        "upcast": False,
        "group": tiles.GROUP,
    }


def _block(tile: tiles.Tile) -> dict[str, int]:
    return {"block_m": tile.rows, "block_n": tile.columns, "block_k": tile.step}


def _weights_block(tile: tiles.Tile) -> dict[str, int]:
    return {"block_n": tile.rows, "block_k": tile.columns, "block_m": tile.step}


def _fused(
    form: str, element: str, precision: str, gate: str, activation: str, capability: int
) -> Iterator[tuple[str, Any, dict[str, int], tiles.Tile, int]]:
    """Yield name, function, blocks, tile and stages of the kernels with matrix products."""
    dtype, shared = ELEMENTS[element], SHARED[capability]
    count = tiles.products(form)
    recomputing = {}
    for tile in tiles.product_tiles(form, dtype, shared, precision):
        stages = tile.stages(1, count, dtype.itemsize, shared)
        yield "forward", forward_kernel, _block(tile), tile, stages
        again = tiles.towards_tile(tile, dtype, activation)
        recomputing[again] = again.stages(1, count, dtype.itemsize, shared)
    for tile, stages in recomputing.items():
        yield "towards", towards_kernel, _block(tile), tile, stages
    if gate == activation == "none":
        tile = tiles.input_tile(dtype)
        stages = tile.stages(count, count, dtype.itemsize, shared)
        yield "towards_input", towards_input_kernel, _block(tile), tile, stages
        tile = tiles.weights_tile(dtype)
        stages = tile.stages(count, 1, dtype.itemsize, shared)
        yield "towards_weights", towards_weights_kernel, _weights_block(tile), tile, stages


def _elementwise() -> Iterator[tuple[str, Any]]:
    yield "elementwise", elementwise_kernel
    yield "elementwise_backward", elementwise_backward_kernel


def _kernels() -> Iterator[Kernel]:
    blocks = {"block_m": launch.ELEMENTWISE_ROWS, "block_n": launch.ELEMENTWISE_COLUMNS}
    for case in _cases():
        form, element, precision, gate, activation = case
        common = _common(*case)
        exact = "-ieee" if element == "fp32" and precision == "ieee" else ""
        functions = f"{gate}-{activation}"
        text = f"{form}/{element}{exact}/{functions}"
        for capability in CAPABILITIES:
            for name, function, block, tile, stages in _fused(*case, capability):
                quick = capability == 90 and (form, element, functions, tile.name) in QUICK
                yield Kernel(
                    f"quadratic_linear/{name}/{text}/{tile.name}",
                    function,
                    _fitting(function, {**common, **block}),
                    num_warps=tile.warps,
                    num_stages=stages,
                    quick=(90,) if quick and not exact else (),
                    capabilities=(capability,),
                    # TF32 products of transposed tiles are read a number at a time.
                    wide=(name, element) != ("towards_weights", "fp32"),
                )
        if precision == "tf32" or element != "fp32":
            for name, function in _elementwise():
                yield Kernel(
                    f"quadratic_linear/{name}/{text}",
                    function,
                    _fitting(function, {**common, **blocks}),
                    num_warps=launch.ELEMENTWISE_WARPS,
                    quick=(90,) if (form, element, functions, "") in QUICK else (),
                    wide=True,
                )


KERNELS = list(_kernels())
