"""Quadratic layers on a GPU: this project's kernels beside torch, torch.compile and Liger.

Checks against float64 come first; if one fails, nothing is timed. Then the device's ceilings are
measured, by a large copy and a large product, and every call is timed by CUDA events: contestants
take turns, the L2 cache is flushed before each call, launches are hidden behind a wait (but for
whole networks), medians. A call's floor is what the ceilings allow for its least operations and
bytes; its share of the roofline is floor / time. Peaks are what a call allocates beyond what was
there.

    python benchmarks/triton_quadratic.py [--quick] [--only GLOB] [--json FILE]
    python benchmarks/triton_quadratic.py --check   # the checks alone; without a GPU in Triton's
                                                    # interpreter, at small sizes
    python benchmarks/triton_quadratic.py --predict # what a model of an H100 and an H200 says

FILE is written after each call, and keeps what it has of calls that are not made, so that --only
'linear * forward' and the like can divide the work. Without a GPU nothing is measured and nothing
written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from recording import record

NO_GPU = 2
"""Exit status where there is no GPU."""

CHECKED = (333, 200, 264)
CHECKED_IN_INTERPRETER = (37, 40, 33)


def machine() -> str:
    """Name the GPU and what drives it."""
    found = torch.cuda.get_device_properties()
    return (
        f"{found.name}, {found.multi_processor_count} multiprocessors, "
        f"{found.total_memory >> 30} GiB, CUDA {torch.version.cuda}"
    )


def check(device: str) -> bool:
    """Run the checks, print what fails, and return whether nothing does."""
    from gpu.checks import checks

    shape = CHECKED if device == "cuda" else CHECKED_IN_INTERPRETER
    torch.manual_seed(0)
    made = list(checks(device, shape))
    for found in made:
        if not found.ok:
            print(f"FAILED: {found.name}: error {found.error:.2e}, limit {found.limit:.0e}")
    worst = max(made, key=lambda found: found.error / found.limit)
    failed = sum(not found.ok for found in made)
    print(
        f"{len(made)} comparisons with float64, {failed} failed; nearest to its limit: "
        f"{worst.name}, {worst.error:.2e} of {worst.limit:.0e}"
    )
    return not failed


def check_in_interpreter() -> int:
    """Run the checks in a process whose Triton interprets, which it decides when imported."""
    if find_spec("triton") is None:
        print("--check without a GPU needs triton, whose interpreter runs the kernels.")
        return NO_GPU
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--check", "--interpreted"]
    return subprocess.run(command, env=environment, check=False).returncode


Call = tuple[tuple[str, str, tuple[int, ...], str], Callable[[], Any], Any, bool]
"""What is measured, who takes part, the least work if known, and whether launches are hidden."""


def calls(quick: bool) -> Iterator[Call]:
    """Yield everything that can be measured."""
    from gpu import elementwise, linear, networks
    from gpu.table import BLOCK, ELEMENTWISE, FORWARD, LINEAR, NETWORK, TRAINING

    for training, passes in ((False, FORWARD), (True, TRAINING)):
        for case in linear.linear_cases(quick):
            size: tuple[int, ...] = (case.rows, case.inputs, case.outputs)
            made = partial(linear.contestants, case, training, quick)
            yield (LINEAR, case.name, size, passes), made, case.work(training), True
        for entry in elementwise.elementwise_cases(quick):
            size = (entry.rows, entry.columns)
            made = partial(elementwise.contestants, entry, training, quick)
            yield (ELEMENTWISE, entry.name, size, passes), made, entry.work(training), True
    for block in networks.block_cases(quick):
        size = (block.batch, block.channels, block.side, block.side)
        made = partial(networks.block_contestants, block, quick)
        yield (BLOCK, "3×3 block", size, TRAINING), made, None, True
    network = networks.NetworkCase(128 if quick else 512)
    made = partial(networks.step_contestants, network, quick)
    yield (NETWORK, "QVGG-7 step", (network.batch, 3, 32, 32), TRAINING), made, None, False


def text(about: tuple[str, str, tuple[int, ...], str]) -> str:
    """Write out what --only compares with."""
    part, case, size, passes = about
    return f"{part} {case} {'x'.join(map(str, size))} {passes}"


def measure(wanted: list[Call], rounds: int) -> Iterator[list[Any]]:
    """Measure call by call, and yield the rows of each."""
    from gpu.roofline import measure_ceilings
    from gpu.table import rows_of
    from gpu.timing import CudaTimer, cuda_peak, race

    timers = {hides: CudaTimer(hides) for hides in {True, *(call[3] for call in wanted)}}
    ceilings = measure_ceilings(timers[True], torch.bfloat16)
    print(
        f"{machine()}: copies {ceilings.bytes_per_ms / 1e9:.2f} TB/s, "
        f"multiplies {ceilings.operations_per_ms / 1e9:.0f} TFLOP/s in bfloat16"
    )
    for about, contestants, work, hides in wanted:
        print(text(about), file=sys.stderr)
        torch.manual_seed(0)
        floor = None if work is None else work.floor_ms(ceilings)
        yield rows_of(about, race(contestants(), rounds, timers[hides], cuda_peak), floor)
        torch.cuda.empty_cache()


def earlier(path: Path | None) -> list[Any]:
    """Read what was recorded on this machine before."""
    from gpu.table import Row

    if path is None or not path.exists():
        return []
    document = json.loads(path.read_text())
    if document["machine"] != machine():
        return []
    return [Row(**{**row, "size": tuple(row["size"])}) for row in document["rows"]]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller calls")
    parser.add_argument(
        "--only", metavar="GLOB", help="of 'linear Quadra 65536x256x256 forward' and the like"
    )
    parser.add_argument("--rounds", type=int, help="calls timed of each contestant")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--check", action="store_true", help="compare with float64 and stop")
    parser.add_argument("--predict", action="store_true", help="print what a model says and stop")
    parser.add_argument("--interpreted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be positive")
    options.rounds = options.rounds or (11 if options.quick else 41)
    return options


def run(options: argparse.Namespace) -> int:
    """Measure, recording after each call, so that a run that is cut off leaves figures."""
    from gpu.table import bars, show

    wanted = [call for call in calls(options.quick) if fnmatch(text(call[0]), options.only or "*")]
    if not wanted:
        names = "\n".join(text(call[0]) for call in calls(options.quick))
        print(f"--only {options.only!r} names nothing; there are\n{names}", file=sys.stderr)
        return 2
    packages = ["torch", "triton", *(["liger-kernel"] if find_spec("liger_kernel") else [])]
    rows, status = earlier(options.json), 1
    for fresh in measure(wanted, options.rounds):
        rows = [row for row in rows if row.about != fresh[0].about] + fresh
        status = record(options.json, packages, rows, bars(rows), machine())
    show(rows, bars(rows))
    return status


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    if options.interpreted:
        return 0 if check("cpu") else 1
    if options.predict:
        from gpu.prediction import show_predictions

        show_predictions()
        return 0
    if not torch.cuda.is_available():
        if options.check:
            return check_in_interpreter()
        print(
            f"no GPU: torch {torch.__version__} finds no CUDA device here, and figures of another "
            f"device would mean nothing. Nothing was measured or written. Run this on a machine "
            f"with a GPU; --check compares the kernels with float64 anywhere.",
            file=sys.stderr,
        )
        return NO_GPU
    if not check("cuda"):
        return 1
    return 0 if options.check else run(options)


if __name__ == "__main__":
    sys.exit(main())
