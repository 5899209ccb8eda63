"""The example tunes both networks a little and serves the quadratic one."""

import runpy
from pathlib import Path

import onnx

EXAMPLE = Path(__file__).parents[2] / "examples" / "fine_tune.py"


def test_it_tunes_two_networks_and_serves_one(tmp_path, capsys):
    path = tmp_path / "net.onnx"
    arguments = ["--data", "digits", "--examples", "256", "--epochs", "4", "--output", str(path)]
    runpy.run_path(str(EXAMPLE))["main"](arguments)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [line[0] for line in lines] == ["first-order:", "quadratic:"]
    assert all(float(line[1]) > 0.4 for line in lines)
    onnx.checker.check_model(str(path), full_check=True)
