"""Measures training steps in a process of their own, whose memory is theirs alone."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qcompile.errors import PassError
from qcompile.memory.profile import Measured
from qcompile.memory.step import Call, TrainingStep

__all__ = ["INSIDE", "Source", "measure_step"]

INSIDE = "QCOMPILE_MEASURES_MEMORY"
"""Environment variable that is set in the measuring process."""

_LINES_OF_ERROR = 12


@dataclass(frozen=True)
class Source:
    """A model by where it comes from, as the command line names it.

    Args:
        spec: a file or ``package.module:callable``.
        allow_pickle: load a pickled module.
    """

    spec: str
    allow_pickle: bool = False


def measure_step(
    model: nn.Module | Source, call: Call, step: TrainingStep, device: str
) -> Measured:
    """Take real training steps in a fresh process and return what one after the first took.

    On a CPU every allocation of torch's allocator counts, those within operators included; what
    other libraries and C++ allocate for themselves does not. On a GPU it is
    ``torch.cuda.max_memory_allocated``.

    Args:
        model: the model, which is pickled, or what the process loads.
        call: what it is called with.
        step: how it is trained.
        device: type of the device.

    Raises:
        PassError: the model cannot be pickled, or a step fails.
    """
    if os.environ.get(INSIDE):
        raise PassError(
            "memory: the measuring process has run your script, since the model's class is defined "
            'in it, and came to measure again: put the call under if __name__ == "__main__".'
        )
    with tempfile.TemporaryDirectory(prefix="qcompile-memory-") as folder:
        job, answer = Path(folder, "job"), Path(folder, "answer.json")
        job.write_bytes(_packed(model, call, step, device))
        command = [sys.executable, "-m", "qcompile.memory.worker", str(job), str(answer)]
        environment = {**os.environ, INSIDE: "1", "KINETO_LOG_LEVEL": "5"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not answer.is_file():
            raise PassError(_told(done))
        found = json.loads(answer.read_text())
    if "error" in found:
        raise PassError(f"memory: the measured step failed: {found['error']}")
    return Measured(**found)


def _packed(model: nn.Module | Source, call: Call, step: TrainingStep, device: str) -> bytes:
    """Return the job: where the classes of the main program are, and the pickled rest."""
    buffer = io.BytesIO()
    try:
        torch.save((model, call, step, device), buffer)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        what = model.spec if isinstance(model, Source) else type(model).__name__
        raise PassError(
            f"memory: {what} or how it is trained cannot be pickled for the measuring process "
            f"({error}): use classes and functions of a module, not lambdas or local ones, or pass "
            "source=qcompile.memory.Source('package.module:callable')."
        ) from error
    job: dict[str, Any] = {
        "main": None,
        "path": sys.path,
        "threads": torch.get_num_threads(),
        "job": buffer.getvalue(),
    }
    if b"__main__" in job["job"]:
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        if main is None:
            raise PassError(
                "memory: the model's class is defined in an interactive session, which the "
                "measuring process cannot read: put it into a module."
            )
        job["main"] = str(Path(main).absolute())
    return pickle.dumps(job)


def _told(done: subprocess.CompletedProcess[str]) -> str:
    """Say how the measuring process ended."""
    if done.returncode < 0:
        return (
            f"memory: the measuring process was killed by signal {-done.returncode}; signal 9 "
            "mostly means that the machine has too little memory for the step."
        )
    last = "\n".join(done.stderr.strip().splitlines()[-_LINES_OF_ERROR:])
    return f"memory: the measuring process ended with status {done.returncode}:\n{last}"
