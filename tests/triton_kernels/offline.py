"""Compiles every kernel for GPUs that need not be here, and compares what comes out with a table.

    python tests/triton_kernels/offline.py           # all of the table
    python tests/triton_kernels/offline.py --quick   # the part that the tests compile
    python tests/triton_kernels/offline.py --write   # make the table anew

Each ``offline_*.py`` beside this file lists the kernels of one folder in ``KERNELS``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLE = HERE / "offline.json"
CAPABILITIES = (80, 90, 100)
SLACK_REGISTERS = 16
"""How many more registers another release of Triton may take."""

MOST_SPILLS = 2
"""Instructions of a loop that may touch the stack: an address is kept there, say."""

MOST_STACK = 64
"""Bytes of stack that a thread may have."""

ATOMIC = re.compile(r"^\s*(?:@\S+\s+)?(?:atom|red)\.", re.MULTILINE)
"""Instructions that would make the order of sums a matter of chance."""

TENSOR_CORE = {"wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma", "mma": r"\bmma\.sync"}


@dataclass(frozen=True)
class Kernel:
    """One kernel with all that decides what is compiled.

    Args:
        name: ``folder/kernel/variant``.
        function: the ``triton.jit`` function.
        arguments: name → type (``*bf16``, ``i32``; with ``:16`` where the address or the number is
            a multiple of 16, as a launch finds out) or constant.
        num_warps: as launched.
        num_stages: as launched.
        quick: for which capabilities the tests compile it; the rest only on demand.
        wide: whether loads must be 16 bytes wide.
    """

    name: str
    function: Any
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    quick: tuple[int, ...] = ()
    wide: bool = False
    capabilities: tuple[int, ...] = field(default=CAPABILITIES)


def measure(kernel: Kernel, capability: int) -> dict[str, Any]:
    """Compile a kernel.

    Returns:
        ``registers`` and ``stack`` bytes a thread, ``spills``: loads and stores of the stack within
        loops, ``shared`` bytes a block, ``tensor_core``: the kind of its matrix instructions (or
        ""), ``wide``: whether it loads 16 bytes at a time.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, hints = {}, {}, {}
    for position, name in enumerate(kernel.function.arg_names):
        value = kernel.arguments[name]
        if isinstance(value, str) and re.fullmatch(r"\*?(fp|bf|i)\d+(:16)?", value):
            signature[name], _, aligned = value.partition(":")
            if aligned:
                hints[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name], constants[name] = "constexpr", value
    source = ASTSource(kernel.function, signature, constants, hints)
    options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = binary.asm["ptx"]
    assert not ATOMIC.search(ptx), f"{kernel.name} adds up by atomics"
    kinds = [kind for kind, pattern in TENSOR_CORE.items() if re.search(pattern, ptx)]
    wide = r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\.cg\.shared\.global.*, 0x10"
    return {
        **_resources(binary.asm["cubin"]),
        "shared": binary.metadata.shared,
        "tensor_core": "+".join(kinds),
        "wide": bool(re.search(wide, ptx)),
    }


def _resources(cubin: bytes) -> dict[str, int]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        code = _output(knobs.nvidia.nvdisasm.path, "--print-code", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, f"cuobjdump says nothing of registers: {usage}"
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": spills_in_loops(code.splitlines()),
    }


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def spills_in_loops(code: list[str]) -> int:
    """Count the instructions between a label and a jump back to it that touch the stack."""
    labels: dict[str, int] = {}
    spilling: set[int] = set()
    for line, text in enumerate(code):
        if label := re.match(r"(\.L\w+):", text):
            labels[label[1]] = line
        target = re.search(r"\bBRA\b.*`\((\.L\w+)\)", text)
        if target and target[1] in labels:
            body = range(labels[target[1]], line)
            spilling |= {i for i in body if re.search(r"\b(STL|LDL)\b", code[i])}
    return len(spilling)


def kernels() -> Iterator[Kernel]:
    """Yield the kernels of all folders."""
    for path in sorted(HERE.glob("offline_*.py")):
        yield from importlib.import_module(path.stem).KERNELS


def complaints(
    kernel: Kernel, measured: dict[str, Any], recorded: dict[str, Any] | None, same: bool
) -> Iterator[str]:
    """Say what is wrong with a compiled kernel.

    Args:
        kernel: the kernel.
        measured: as :func:`measure` returns it.
        recorded: what the table has.
        same: whether the table was made by this release of Triton, and so must be met exactly.
    """
    if measured["spills"] > MOST_SPILLS:
        yield f"registers spill within a loop: {measured['spills']} instructions"
    if measured["stack"] > MOST_STACK:
        yield f"registers spill: {measured['stack']} bytes of stack a thread"
    if kernel.wide and not measured["wide"]:
        yield "loads are not 16 bytes wide"
    if recorded is None:
        yield "the table lacks it; run with --write"
    elif same and measured != recorded:
        yield f"{measured} differs from the table's {recorded}; if meant, run with --write"
    elif measured["tensor_core"] != recorded["tensor_core"]:
        kinds = (measured["tensor_core"], recorded["tensor_core"])
        yield "matrix instructions are {!r}, not {!r}".format(*kinds)
    elif measured["registers"] > recorded["registers"] + SLACK_REGISTERS:
        yield f"{measured['registers']} registers, {recorded['registers']} before"


def _read() -> dict[str, Any]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {"triton": "", "kernels": {}}


def _write(found: dict[str, Any]) -> None:
    import triton

    # One kernel and capability a line, so that a change shows as such.
    rows = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(found.items()))
    text = f'{{\n  "triton": {json.dumps(triton.__version__)},\n  "kernels": {{\n{rows}\n  }}\n}}\n'
    fresh = TABLE.with_suffix(".tmp")
    fresh.write_text(text)
    fresh.replace(TABLE)


def main() -> int:
    """Compile, print a line each, and return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what the tests compile")
    parser.add_argument("--write", action="store_true", help="make the table anew")
    parser.add_argument("--only", default="", metavar="GLOB", help="of the kernels' names")
    options = parser.parse_args()
    import triton

    table = _read()
    same = table["triton"] == triton.__version__
    found: dict[str, Any] = {}
    wrong = 0
    every = list(kernels())
    for kernel in every:
        if not fnmatch(kernel.name, options.only or "*"):
            continue
        for capability in kernel.quick if options.quick else kernel.capabilities:
            key = f"{kernel.name}/sm_{capability}"
            found[key] = measured = measure(kernel, capability)
            recorded = measured if options.write else table["kernels"].get(key)
            texts = list(complaints(kernel, measured, recorded, same or options.write))
            wrong += len(texts)
            print(key, *(f"{k}={v}" for k, v in measured.items()), *texts, flush=True)
    if options.write:
        known = {f"{k.name}/sm_{c}" for k in every for c in k.capabilities}
        kept = {key: value for key, value in table["kernels"].items() if key in known}
        _write({**(kept if options.only else {}), **found})
    print(f"{len(found)} compiled, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    # As a module, so that the lists of kernels and this program share one class.
    sys.exit(importlib.import_module("offline").main())
