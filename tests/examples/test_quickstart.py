"""The demo, with fewer epochs."""

import re
import subprocess
import sys
from pathlib import Path

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"


def test_it_learns_exports_and_answers_alike_with_and_without_the_plugin():
    done = subprocess.run(
        [sys.executable, str(QUICKSTART), "--epochs", "1"],
        capture_output=True,
        text=True,
        timeout=580,
    )
    # The script itself compares the answers of both sessions and fails where they differ.
    assert done.returncode == 0, done.stderr
    learned = dict(re.findall(r"^(.+), epoch \d+: P@1 ([\d.]+)", done.stdout, re.MULTILINE))
    assert set(learned) == {"first-order dense", "quadratic dense", "quadratic + LSH"}
    assert all(float(precision) > 0.3 for precision in learned.values()), learned
    assert re.search(r"recieve → .*receive", done.stdout)
