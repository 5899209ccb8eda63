"""Memory and time of a training step of QVGG-7 at each memory level, beside other ways to save it.

The step is forward, loss and backward on images of 32×32. Others: the same network composed of
torch's layers as QuadraLib composes it, alone and with `torch.utils.checkpoint` around what each
level recomputes; and AOTAutograd's min-cut partitioner, with torch's kernels and with inductor's.

Peak: each variant in a process of its own; the sum of torch's allocations and releases as its
profiler records them, on top of parameters, buffers and inputs. The process's own peak stands
beside it as a check: it counts the interpreter, too. Time: in processes of their own, too, which
take turns, since the heap that one variant leaves changes the time of the next; in each, the median
step after one that warms up, and of those the median. Operations: multiply-adds of products and
convolutions, times two.

    python benchmarks/quadratic_memory.py [--quick] [--parts peak,time] [--json FILE]

With --parts, a FILE that exists keeps the figures of the other part.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recording import record
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from qcompile.models import qvgg7
from qcompile.nn import QuadraticBlock

LEVELS = ("level 0", "level 1", "level 3")
COMPOSED = ("composed", "composed, element-wise part checkpointed", "composed, checkpointed")
MIN_CUT = ("min-cut, torch's kernels", "min-cut, inductor")
VARIANTS = (*LEVELS, *COMPOSED, *MIN_CUT)
RIVALS = dict(zip(LEVELS, COMPOSED, strict=True))
MIB = 1 << 20
STEPS = 3  # of one process


@dataclass
class Row:
    """One variant's step."""

    variant: str
    batch: int
    parameters: int = 0
    saved_mib: float = 0.0
    peak_mib: float = 0.0
    process_mib: float = 0.0
    operations: int = 0
    step_ms: float = 0.0


class Composed(nn.Module):
    """A block as QuadraLib composes it, of torch's own layers.

    Args:
        block: whose layers' shapes to take.
        keep: ``all``, or what not to keep: ``elements`` or ``products``, too.
    """

    def __init__(self, block: QuadraticBlock, keep: str) -> None:
        super().__init__()
        self.keep = keep
        layer, width = block.layer, block.out_channels
        for letter in "abc":
            weight = getattr(layer, f"weight_{letter}")
            product = nn.Conv2d(layer.in_channels, width, 3, padding=1, bias=False)
            product.weight = weight
            setattr(self, f"conv_{letter}", product)
            setattr(self, f"bn_{letter}", nn.BatchNorm2d(width))
        self.bn = nn.BatchNorm2d(width)
        self.pool = block.pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        options = {"use_reentrant": False, "preserve_rng_state": False}
        if self.keep == "products":
            return checkpoint(self._block, x, **options)
        if self.keep == "elements":
            values = self.conv_a(x), self.conv_b(x), self.conv_c(x)
            return checkpoint(self._elements, *values, **options)
        return self._block(x)

    def _block(self, x: torch.Tensor) -> torch.Tensor:
        return self._elements(self.conv_a(x), self.conv_b(x), self.conv_c(x))

    def _elements(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.bn_a(a) * self.bn_b(b) + self.bn_c(c)))
        return y if self.pool is None else self.pool(y)


def build(variant: str, scale: float) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """Return a network and how to call it."""
    torch.manual_seed(0)
    level = int(variant[-1]) if variant in LEVELS else 0
    model = qvgg7(scale=scale, memory=level)
    if variant in COMPOSED:
        keep = ("all", "elements", "products")[COMPOSED.index(variant)]
        blocks = [
            Composed(module, keep) if isinstance(module, QuadraticBlock) else module
            for module in model.features
        ]
        model.features = nn.Sequential(*blocks)
    if variant in MIN_CUT:
        torch._dynamo.reset()
        backend = ("aot_eager_decomp_partition", "inductor")[MIN_CUT.index(variant)]
        return model, torch.compile(model, backend=backend)
    return model, model


class Step:
    """A training step without the optimiser's."""

    def __init__(self, variant: str, batch: int, scale: float) -> None:
        self.model, self.call = build(variant, scale)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(batch, 3, 32, 32, generator=generator)
        self.labels = torch.randint(10, (batch,), generator=generator)

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.call(self.x), self.labels).backward()

    @property
    def resident(self) -> int:
        """Bytes that are there before the step."""
        tensors = [*self.model.parameters(), *self.model.buffers(), self.x, self.labels]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def saved(self) -> int:
        """Bytes that autograd keeps between forward and backward, beside what is resident."""
        own = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*self.model.parameters(), *self.model.buffers(), self.x, self.labels)
        }
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = self.call(self.x)
        del y
        return sum(kept.values())


def peak(step: Step) -> int:
    """Return the most bytes that tensors take at once during one step."""
    step.model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return step.resident + most


def measure_peak(variant: str, batch: int, scale: float) -> Row:
    """Measure one variant in this process."""
    step = Step(variant, batch, scale)
    row = Row(variant, batch, sum(p.numel() for p in step.model.parameters()))
    step()
    row.peak_mib = round(peak(step) / MIB, 1)
    row.process_mib = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    if variant not in MIN_CUT:
        with FlopCounterMode(display=False) as counter:
            step()
        row.operations = counter.get_total_flops()
        # Checkpointing keeps inputs by means of its own, which these hooks do not see.
        row.saved_mib = 0.0 if "checkpointed" in variant else round(step.saved() / MIB, 1)
    return row


def measure_time(variant: str, batch: int, scale: float) -> Row:
    """Time one variant in this process."""
    step = Step(variant, batch, scale)
    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        step.model.zero_grad(set_to_none=True)
    return Row(variant, batch, step_ms=round(1e3 * statistics.median(times[1:]), 1))


def elsewhere(part: str, variant: str, quick: bool) -> Row:
    """Measure one variant in a process of its own."""
    command = [sys.executable, __file__, "--parts", part, "--worker", variant]
    command += ["--quick"] * quick
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = Row(**json.loads(answer.stdout.splitlines()[-1]))
    print(f"{variant}: {row.peak_mib} MiB, {row.step_ms} ms", file=sys.stderr)
    return row


def bars(rows: dict[str, Row]) -> list[dict[str, Any]]:
    """Compare with what is asked for."""
    base = rows["level 0"]
    found: list[tuple[str, float, float]] = []
    if base.peak_mib:
        found += [
            ("peak of level 1 / level 0", rows["level 1"].peak_mib / base.peak_mib, 0.68),
            ("peak of level 3 / level 0", rows["level 3"].peak_mib / base.peak_mib, 0.45),
            ("operations of level 3 / level 0", rows["level 3"].operations / base.operations, 1.36),
        ]
        found += [
            (f"peak of {level} / {variant}", rows[level].peak_mib / rows[variant].peak_mib, 1.0)
            for variant in MIN_CUT
            for level in ("level 1", "level 3")
        ]
    if base.step_ms:
        pairs = [*RIVALS.items(), *((lv, v) for v in MIN_CUT for lv in ("level 1", "level 3"))]
        found += [
            (f"time of {level} / {rival}", rows[level].step_ms / rows[rival].step_ms, 1.0)
            for level, rival in pairs
        ]
    return [
        {"name": name, "value": round(value, 3), "target": target, "ok": value <= target}
        for name, value, target in found
    ]


def show(rows: dict[str, Row], comparisons: list[dict[str, Any]]) -> None:
    console = Console(width=150)
    table = Table(title="QVGG-7, one training step")
    for column in ("variant", "saved MiB", "peak MiB", "process MiB", "GFLOP", "ms"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for row in rows.values():
        numbers = [row.saved_mib, row.peak_mib, row.process_mib, round(row.operations / 1e9, 1)]
        cells = [f"{number:,}" if number else "" for number in (*numbers, row.step_ms)]
        table.add_row(row.variant, *cells)
    console.print(table)
    for bar in comparisons:
        sign = "≤" if bar["ok"] else ">"
        console.print(f"{bar['name']}: {bar['value']} {sign} {bar['target']}", highlight=False)


def earlier(path: Path | None, batch: int) -> dict[str, Row]:
    """Read what an earlier run recorded of the other part."""
    rows = {variant: Row(variant, batch) for variant in VARIANTS}
    if path is not None and path.exists():
        for entry in json.loads(path.read_text())["rows"]:
            if entry["variant"] in rows and entry["batch"] == batch:
                rows[entry["variant"]] = Row(**entry)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the width, batches of 8")
    parser.add_argument("--parts", default="peak,time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    batch, scale = (8, 1 / 8) if options.quick else (128, 1.0)
    if options.worker:
        measure = measure_peak if options.parts == "peak" else measure_time
        print(json.dumps(vars(measure(options.worker, batch, scale))))
        return 0
    rows = earlier(options.json if options.parts != "peak,time" else None, batch)
    if "peak" in options.parts:
        for variant, row in rows.items():
            rows[variant] = elsewhere("peak", variant, options.quick)
            rows[variant].step_ms = row.step_ms
    if "time" in options.parts:
        turns = [
            {variant: elsewhere("time", variant, options.quick).step_ms for variant in rows}
            for _ in range(options.rounds)
        ]
        for variant, row in rows.items():
            row.step_ms = statistics.median(turn[variant] for turn in turns)
    comparisons = bars(rows)
    show(rows, comparisons)
    return record(options.json, ["torch"], rows.values(), comparisons)


if __name__ == "__main__":
    sys.exit(main())
