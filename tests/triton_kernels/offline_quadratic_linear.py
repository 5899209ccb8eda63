"""The kernels of ``triton_kernels/quadratic_linear`` as they are launched on aligned tensors."""

from collections.abc import Iterator
from typing import Any

import torch
from offline import CAPABILITIES, Kernel

from qcompile.triton_kernels.quadratic_linear import launch, tiles
from qcompile.triton_kernels.quadratic_linear.backward import towards_kernel
from qcompile.triton_kernels.quadratic_linear.elementwise import (
    elementwise_backward_kernel,
    elementwise_kernel,
)
from qcompile.triton_kernels.quadratic_linear.forms import FORMS
from qcompile.triton_kernels.quadratic_linear.forward import forward_kernel
from qcompile.triton_kernels.quadratic_linear.gradients import (
    input_gradient_kernel,
    weight_gradients_kernel,
)

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that a block may have."""

ELEMENTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GATED = (("none", "none"), ("silu", "none"), ("gelu", "gelu_tanh"))
UNGATED = (("none", "none"), ("none", "gelu_tanh"))
ROLES = ("first", "second", "added")


def _branches(form: str) -> dict[str, Any]:
    spec = FORMS[form]
    count = len(set(spec.factors))
    return {
        "product": ("none", "square", "pair")[count],
        "has_added": bool(spec.added),
        "wants_first": count > 0,
        "wants_second": count > 1,
        "wants_added": bool(spec.added),
    }


def _fitting(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in function.arg_names}


def _cases() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield form, element, precision of products, gate and activation."""
    for form in FORMS:
        for gate, activation in GATED if _branches(form)["wants_second"] else UNGATED:
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
    pointers = [f"{x}_ptr" for x in (*ROLES, "x", "y", "dx", "grad", "towards", "factors")]
    pointers += [f"{x}_{what}_ptr" for x in ROLES for what in ("bias", "value")]
    steps = [f"{x}_row" for x in (*ROLES, "x", "y", "dx", "grad", "factors", "towards")]
    unit = [f"{x}_column" for x in (*ROLES, "x", "y", "grad")] + [f"{x}_bias_step" for x in ROLES]
    return {
        **dict.fromkeys((*pointers, "kept_added_ptr"), f"*{element}:16"),
        **dict.fromkeys(("sums_ptr", *(f"{x}_out_ptr" for x in ROLES)), "*fp32:16"),
        **dict.fromkeys((*steps, "added_value_row", "part_step"), "i32:16"),
        **dict.fromkeys(unit, 1),
        **dict.fromkeys(("rows", "columns", "depth", "part_rows"), "i32:16"),
        **_branches(form),
        **dict.fromkeys((f"has_{x}_bias" for x in ROLES), True),
        "has_sums": True,
        "keeps": False,
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


def _gradients(
    form: str, element: str, gate: str, activation: str
) -> Iterator[tuple[str, Any, tiles.GradientTile, dict[str, Any]]]:
    """Yield name, function, tile and what is special of the kernels of the gradients."""
    dtype = ELEMENTS[element]
    for engine, recomputes in (("kept", False), ("narrow", True)):
        if recomputes and not tiles.is_narrow(dtype, tiles.NARROW, activation):
            continue
        depth = tiles.NARROW
        tile = tiles.input_tile(form, dtype, activation, depth)
        yield f"input_gradient-{engine}", input_gradient_kernel, tile, {"recomputes": recomputes}
        tile = tiles.weights_tile(form, dtype, gate, activation, depth, recomputes)
        more = {"recomputes": recomputes}
        yield f"weight_gradients-{engine}", weight_gradients_kernel, tile, more


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
                    wide=True,
                )
        made = [] if exact else _gradients(form, element, gate, activation)
        for name, function, tile, more in made:
            block = {"block_m": tile.rows, "block_n": tile.columns, "block_k": tile.depth}
            quick = (form, element, functions, "") in QUICK
            yield Kernel(
                f"quadratic_linear/{name}/{text}",
                function,
                _fitting(function, {**common, **block, **more}),
                num_warps=tile.warps,
                num_stages=tile.stages,
                quick=(90,) if quick else (),
                wide=True,
            )
        if exact:  # nothing reads what is kept
            continue
        keeping = next(iter(tiles.product_tiles(form, ELEMENTS[element], SHARED[90], precision)))
        stages = keeping.stages(1, tiles.products(form), ELEMENTS[element].itemsize, SHARED[90])
        yield Kernel(
            f"quadratic_linear/forward-kept/{text}/{keeping.name}",
            forward_kernel,
            _fitting(forward_kernel, {**common, **_block(keeping), "keeps": True}),
            num_warps=keeping.warps,
            num_stages=stages,
            capabilities=(90, 100),
            wide=True,
        )
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
