"""Runs a script in a process of its own, as Triton reads its environment when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent / "triton_kernels"


def run(*arguments: str, **environment: str) -> str:
    """Run Python; return what it prints, which has to end in ``checked``."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "checked"
    return done.stdout


def interpret(script: str) -> str:
    """Run a script of tests/triton_kernels with Triton's interpreter in place of its compiler."""
    return run("-W", "ignore:::triton", str(SCRIPTS / script), TRITON_INTERPRET="1")
