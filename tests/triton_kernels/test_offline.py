"""Every kernel compiled for GPUs that need not be here; see ``offline.py`` beside this file."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("offline.py")


def spills_in_loops(code):
    specification = importlib.util.spec_from_file_location("offline", SCRIPT)
    offline = importlib.util.module_from_spec(specification)
    sys.modules["offline"] = offline  # where its dataclasses look for their module
    specification.loader.exec_module(offline)
    return offline.spills_in_loops(code)


def test_kernels_compile_to_what_the_table_records(tmp_path):
    # In a process of its own, so that no environment variable turns the interpreter on.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout.splitlines()[-1].startswith("0 compiled")


def test_only_spills_within_loops_count():
    code = [
        "STL [R1], R2 ;",
        ".L_x_1:",
        "LDL R2, [R1] ;",
        "@P0 BRA `(.L_x_2) ;",
        "LDS R3, [R4] ;",
        ".L_x_2:",
        "@!P5 BRA `(.L_x_1) ;",
        "LDL R2, [R1] ;",
    ]
    assert spills_in_loops(code) == 1
    assert spills_in_loops(code[:2] + code[3:]) == 0
