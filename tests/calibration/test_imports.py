"""Modules that are needed below the exporter can be the first to be imported."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["calibration.search", "calibration.trials", "running.sessions"])
def test_a_module_imports_alone(module):
    done = subprocess.run(
        [sys.executable, "-c", f"import qcompile.{module}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
