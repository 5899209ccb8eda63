"""The plugin computes on threads that the host has: it starts none of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from qcompile import ops

_COUNT = """
import os, sys, threading, time
{before}
import numpy as np, onnxruntime, qcompile
path, threads = sys.argv[1], int(sys.argv[2])

def count():
    return len(os.listdir("/proc/self/task"))

def session():
    options = qcompile.session_options()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

hidden = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
before = count()
sessions = [session(), session()]
started = count() - before
{after}
imported = count()
callers = [
    threading.Thread(target=lambda s=s: [s.run(None, {{"hidden": hidden}}) for _ in range(30)])
    for s in sessions * 2
]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
deadline = time.monotonic() + 10
while count() > imported and time.monotonic() < deadline:
    time.sleep(0.01)  # a thread that was joined may still be listed
print(started, count() - imported)
"""


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("torch", ["never", "before", "after"])
def test_running_starts_no_thread_beyond_those_of_the_sessions(head_model, torch, threads):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(20_000, 32)).astype(np.float32)
    path = head_model(ops.LINEAR_TOP_K, weight, np.zeros(20_000, np.float32), k=5)
    lines = {when: "import torch" if torch == when else "" for when in ("before", "after")}
    environment = {k: v for k, v in os.environ.items() if k != "QCOMPILE_PARALLEL"}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT.format(**lines), path, str(threads)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(2 * (threads - 1)), "0"]
