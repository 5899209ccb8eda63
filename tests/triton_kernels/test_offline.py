"""Every kernel compiled for GPUs that need not be here; see ``offline.py`` beside this file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_compile_to_what_the_table_records(tmp_path):
    # In a process of its own, so that no environment variable turns the interpreter on.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("offline.py")), "--quick"],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout.splitlines()[-1].startswith("0 compiled")
