"""The measuring process: takes training steps and reports what torch's allocator handed out.

    python -m qcompile.memory.worker JOB ANSWER

The job is a pickle that the process which starts this one has just written for it.
"""

from __future__ import annotations

import gc
import io
import json
import pickle
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from qcompile.memory.measure import Source
from qcompile.memory.step import Call, TrainingStep

_STEPS = 2
_MARK = "qcompile.memory: "


def main(job: str, answer: str) -> None:
    """Do the job and write the answer."""
    packed = pickle.loads(Path(job).read_bytes())
    sys.path[:] = packed["path"]
    torch.set_num_threads(packed["threads"])
    if packed["main"] is not None:
        # Where multiprocessing puts the main program of the process that started this one.
        names = runpy.run_path(packed["main"], run_name="__mp_main__")
        vars(sys.modules["__main__"]).update(names)
    try:
        found = _measure(packed["job"])
    except Exception as error:  # a model's forward may raise anything at all
        found = {"error": f"{type(error).__name__}: {error}"}
    Path(answer).write_text(json.dumps(found))


def _measure(packed: bytes) -> dict[str, Any]:
    # Once for the libraries that it imports, whose memory is not the step's.
    _loaded(_unpacked(packed)[0])
    gc.collect()
    before = _resident()
    # From here on every block is known to the profiler, so that none is freed unseen.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model, call, step, device = _unpacked(packed)
        most = _take_steps(_loaded(model), call, step, device)
    if device == "cuda":
        return {**most, "resident": None, "phases": [], "totals": []}
    grown = None if before is None or most["resident"] is None else most["resident"] - before
    return {**_read(profiler), "resident": grown}


def _unpacked(packed: bytes) -> tuple[nn.Module | Source, Call, TrainingStep, str]:
    found: tuple[nn.Module | Source, Call, TrainingStep, str]
    found = torch.load(io.BytesIO(packed), weights_only=False)
    return found


def _loaded(model: nn.Module | Source) -> nn.Module:
    if not isinstance(model, Source):
        return model
    from qcompile.exporter.reading import load_source

    found = load_source(model.spec, allow_pickle=model.allow_pickle)
    return found.module() if isinstance(found, torch.export.ExportedProgram) else found


def _take_steps(model: nn.Module, call: Call, step: TrainingStep, device: str) -> dict[str, Any]:
    """Take steps; of the last, return what the system and a GPU's allocator tell."""
    model = model.to(device=device, dtype=step.cast).train()
    call = step.place(call, device)
    optimizer = step.make_optimizer(model, device)
    before = 0
    mark: list[Any] = []

    def enter(phase: str) -> None:
        if mark:
            mark.pop().__exit__(None, None, None)
        if phase != "end":
            mark.append(record_function(f"{_MARK}{phase}"))
            mark[-1].__enter__()

    for number in range(_STEPS):
        if number == _STEPS - 1:
            _forget_resident()
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
        step.run(model, call, optimizer, device, enter)
    if device == "cuda":
        torch.cuda.synchronize()
        return {"peak": torch.cuda.max_memory_allocated(), "phase": "", "before": before}
    return {"resident": _resident("VmHWM")}


def _read(profiler: profile) -> dict[str, Any]:
    """Return peak and course of the last step."""
    live, before = 0, 0
    phases: list[str] = []
    totals: list[int] = []
    for phase, size in _allocations(profiler):
        if phase == "forward" and (not phases or phases[-1] != "forward"):
            phases, totals, before = [], [], live
        live += size
        phases.append(phase)
        totals.append(live)
    steps = [i for i, phase in enumerate(phases) if phase]
    if not steps:
        raise RuntimeError("torch's profiler saw no allocation during the step.")
    at = max(steps, key=totals.__getitem__)
    return {
        "peak": totals[at],
        "phase": phases[at],
        "before": before,
        "phases": [phases[i] for i in steps],
        "totals": [totals[i] for i in steps],
    }


def _allocations(profiler: profile) -> Iterator[tuple[str, int]]:
    """Yield phase and bytes of each allocation, negative where it ends, in order of time."""
    found = []
    roots = profiler.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]
    waiting = [(event, "") for event in roots]
    while waiting:
        event, phase = waiting.pop()
        if event.tag == _EventType.Allocation:
            block: Any = event.extra_fields
            if block.device.type == "cpu":
                found.append((event.start_time_ns, phase, block.alloc_size))
            continue
        if event.name.startswith(_MARK):
            phase = event.name.removeprefix(_MARK)
        waiting += [(child, phase) for child in event.children]
    # Stable: of events at the same instant, children come in order.
    found.sort(key=lambda entry: entry[0])
    return iter((phase, size) for _, phase, size in found)


def _resident(what: str = "VmRSS") -> int | None:
    """Return the process's resident bytes, or the most so far (VmHWM); None where unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{what}:")), None)
    return None if found is None else int(found.split()[1]) * 1024


def _forget_resident() -> None:
    """Let the most so far begin anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
