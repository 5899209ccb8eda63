"""The command line."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from qcompile.cli import main

MODULE = """
import torch

def classifier():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5000))

def images():
    torch.manual_seed(0)
    layers = []
    for channels in (3, 8, 8):
        layers += [torch.nn.Conv2d(channels, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)

class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = torch.nn.Linear(8, 6), torch.nn.Linear(8, 6)

    def forward(self, x):
        return torch.sigmoid(self.gate(x)) * self.up(x)

gated = Gated

def not_a_module():
    return 7
"""


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    return tmp_path


@pytest.fixture
def qcompile(folder, capfd):
    """Run the command in this process, which has imported torch already."""

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        try:
            status = main(list(arguments))
        except SystemExit as leaving:  # argparse leaves this way
            status = int(leaving.code or 0)
        return Done(status, *capfd.readouterr())

    return run


def onnx_file(path: Path, outputs: int = 5000, depth: int = 6) -> Path:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((depth, outputs), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="head")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_help_imports_neither_torch_nor_onnxruntime_nor_onnx():
    script = (
        "import sys; from qcompile.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'onnxruntime', 'onnx', 'triton', 'numpy', 'rich') "
        "if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "export" in done.stdout


def test_the_command_runs_as_a_module_and_as_a_script():
    script = Path(sys.executable).with_name("qcompile")
    for command in ([sys.executable, "-m", "qcompile"], [str(script)]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stdout.startswith("qcompile ")


@pytest.mark.parametrize("command", ["export", "transform", "inspect", "env", "passes"])
def test_each_command_has_help_and_json(folder, qcompile, command):
    done = qcompile(command, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["export"], ["export", "a", "--top-k", "x"]]
)
def test_wrong_usage_is_status_2(folder, qcompile, arguments):
    done = qcompile(*arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert not done.stdout


def test_export_of_an_onnx_file_writes_beside_it(folder, qcompile):
    source = onnx_file(folder / "model.onnx")
    before = source.read_bytes()
    done = qcompile("export", "model.onnx", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    written = folder / "model.qcompile.onnx"
    assert Path(result["path"]).name == written.name
    assert source.read_bytes() == before
    domains = {node.domain for node in onnx.load(written).graph.node}
    assert "qcompile" in domains


def test_export_with_top_k_changes_the_outputs(folder, qcompile):
    onnx_file(folder / "model.onnx")
    done = qcompile("export", "model.onnx", "--top-k", "3", "-o", "best.onnx")
    assert done.returncode == 0, done.stderr
    graph = onnx.load(folder / "best.onnx").graph
    assert [value.type.tensor_type.elem_type for value in graph.output] == [
        TensorProto.FLOAT,
        TensorProto.INT64,
    ]
    inspected = qcompile("inspect", "best.onnx", "--json")
    facts = json.loads(inspected.stdout)
    assert facts["would"]["modified"] is False
    assert any(name.startswith("qcompile.") for name in facts["model"])


def test_inspect_reads_back_what_calibration_measured(folder, qcompile):
    onnx_file(folder / "model.onnx")
    rows = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    np.savez(folder / "rows.npz", x=rows)
    promise = ("--top-k", "2", "--recall", "0.8", "--calibrate", "rows.npz")
    exported = qcompile("export", "model.onnx", *promise, "-o", "best.onnx")
    assert exported.returncode == 0, exported.stderr
    told = [line.split() for line in exported.stdout.splitlines() if "recall@" in line]
    assert told
    inspected = qcompile("inspect", "best.onnx").stdout
    shown = [line.split() for line in inspected.splitlines()]
    assert all(line in shown for line in told)
    assert "settings judged" in inspected
    facts = json.loads(qcompile("inspect", "best.onnx", "--json").stdout)["model"]
    (choice,) = facts["qcompile.calibration"].values()
    assert choice["promised"] == 0.8


def test_inspect_shows_a_strangers_calibration_as_it_is(folder, qcompile):
    model = onnx.load(onnx_file(folder / "model.onnx"))
    for calibration in ('{"layer": {"mode": "cells"}}', '{"layer": [1]}', "[]", "{" * 5000):
        del model.metadata_props[:]
        model.metadata_props.add(key="qcompile.calibration", value=calibration)
        onnx.save(model, folder / "strange.onnx")
        done = qcompile("inspect", "strange.onnx")
        assert done.returncode == 0, done.stderr
        assert "calibration" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "missing.onnx"], "missing.onnx"),
        (["export", "garbage.onnx"], "garbage.onnx"),
        (["export", "garbage.pt2"], "garbage.pt2"),
        (["export", "small.onnx"], "no output layer of 4096"),
        (["export", "networks:classifier"], "input"),
        (["export", "networks:classifier", "--input", "4y8"], "joined by 'x'"),
        (["export", "networks:classifier", "--input", "4x8:complex"], "unknown type"),
        (["export", "networks:absent", "--input", "4x8"], "absent"),
        (["export", "networks:not_a_module", "--input", "4x8"], "not_a_module"),
        (["export", "pickled.pt", "--input", "4x8"], "--allow-pickle"),
        (["transform", "networks:classifier"], "--quadratic"),
        (["transform", "networks:classifier", "--quadratic", "Quadro"], "'Quadra'"),
        (["transform", "networks:classifier", "--quadratic", "T2", "--init", "preserve"], "T2"),
        (["transform", "networks:classifier", "--quadratic", "T2", "-o", "x.exe"], ".safetensors"),
        (["transform", "networks:images", "--activation", "drop"], "--quadratic"),
        (["transform", "networks:images", "--quadratic", "T2", "--memory", "auto"], "budget"),
        (["transform", "networks:images", "--quadratic", "T2", "--memory-budget", "1MB"], "auto"),
    ],
)
def test_bad_input_is_status_1_names_itself_and_leaves_no_file(folder, qcompile, arguments, says):
    (folder / "garbage.onnx").write_bytes(b"\x08\x07garbage")
    (folder / "garbage.pt2").write_bytes(b"PK\x03\x04 not really")
    onnx_file(folder / "small.onnx", outputs=12)
    torch.save(torch.nn.Linear(8, 5000), folder / "pickled.pt")
    before = sorted(path.name for path in folder.iterdir() if path.is_file())
    done = qcompile(*arguments, "--json")
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert says in done.stderr
    assert says in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == before


def test_a_pickled_module_loads_when_allowed(folder, qcompile):
    torch.save(torch.nn.Sequential(torch.nn.Linear(8, 5000)), folder / "pickled.pt")
    done = qcompile("inspect", "pickled.pt", "--allow-pickle", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["parameters"] == 8 * 5000 + 5000


def test_transform_saves_weights_program_and_onnx(folder, qcompile):
    common = ["transform", "networks:classifier", "--quadratic", "Quadra", "--sparse-output"]
    for name in ("net.safetensors", "net.pt2", "net.onnx"):
        done = qcompile(*common, "--input", "4x8", "--json", "-o", name)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert {entry["name"] for entry in report["entries"]} == {"0", "2"}
        assert (folder / name).stat().st_size > 5000 * 16 * 4
    sys.path.insert(0, str(folder))
    try:
        import networks
    finally:
        sys.path.remove(str(folder))
    hidden = torch.randn(4, 8)
    program = torch.export.load(folder / "net.pt2").module()
    torch.testing.assert_close(program(hidden), networks.classifier()(hidden))


def test_transform_fuses_products_of_linear_layers(folder, qcompile):
    done = qcompile("transform", "networks:gated", "--fuse", "--input", "4x8", "--json")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["entries"]
    assert (entry["pass_name"], entry["status"]) == ("fuse", "rewritten")
    nothing = qcompile("transform", "networks:classifier", "--fuse")
    assert nothing.returncode == 1
    assert "0 rewritten" in nothing.stdout
    without = qcompile("transform", "networks:gated")
    assert "--fuse" in without.stderr


def test_transform_that_changes_nothing_is_status_1(folder, qcompile):
    done = qcompile(
        "transform",
        "networks:classifier",
        "--quadratic",
        "T2",
        "--where",
        "nothing.*",
    )
    assert done.returncode == 1
    assert "0 rewritten" in done.stdout


def test_transform_takes_batch_norms_and_activations_into_blocks(folder, qcompile):
    asked = ("--quadratic", "Quadra", "--batch-norm", "branch", "--activation", "drop")
    common = ("networks:images", *asked, "--where", "0", "--memory", "3", "--json")
    written = ("-o", "net.safetensors")
    done = qcompile("transform", *common, *written)
    assert done.returncode == 0, done.stderr
    names = set(load_file(folder / "net.safetensors"))
    assert {"0.layer.weight_a", "0.norm_a.weight", "0.norm_c.running_mean", "3.weight"} <= names
    inspected = qcompile("inspect", "networks:images", *asked, "--where", "0", "--json")
    assert json.loads(inspected.stdout)["would"]["entries"] == json.loads(done.stdout)["entries"]


def test_transform_chooses_memory_levels_for_a_budget(folder, qcompile):
    asked = ("--quadratic", "Quadra", "--batch-norm", "both", "--input", "32x3x32x32")
    common = ("transform", "networks:images", *asked, "--memory", "auto")
    roomy = qcompile(*common, "--memory-budget", "1GiB", "--json")
    assert roomy.returncode == 0, roomy.stderr
    (note,) = [n for n in json.loads(roomy.stdout)["notes"] if n.startswith("memory levels")]
    assert "level 1" not in note
    assert "level 3" not in note
    tight = qcompile(*common, "--memory-budget", "1MB", "--json")
    assert tight.returncode == 1
    least = re.search(r"takes at least .*?([\d,]+) bytes", tight.stderr).group(1)
    fitting = qcompile(*common, "--memory-budget", least.replace(",", ""), "--json")
    (note,) = [n for n in json.loads(fitting.stdout)["notes"] if n.startswith("memory levels")]
    assert "level 3" in note


def test_export_of_a_module_reads_like_the_module(folder, qcompile):
    done = qcompile("export", "networks:classifier", "--input", "4x8", "-o", "net.onnx")
    assert done.returncode == 0, done.stderr
    assert "net.onnx" in done.stdout
    assert (folder / "net.onnx").exists()


def test_env_names_versions_and_plugin(folder, qcompile):
    done = qcompile("env", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["torch"].startswith("2.13")
    assert Path(facts["plugin"]).exists()


def test_env_without_a_plugin_says_so(folder, qcompile, monkeypatch):
    monkeypatch.setenv("QCOMPILE_LIBRARY", str(folder / "absent.so"))
    done = qcompile("env", "--json")
    assert done.returncode == 1
    assert "absent.so" in json.loads(done.stdout)["plugin_error"]


def test_passes_are_listed_with_their_summaries(folder, qcompile):
    done = qcompile("passes", "--json")
    assert done.returncode == 0, done.stderr
    passes = json.loads(done.stdout)["passes"]
    assert {"torch", "ONNX"} == {entry["over"] for entry in passes}
    assert all(entry["summary"] for entry in passes)


def test_analyze_prints_a_table_and_writes_a_page(folder, qcompile):
    rows = np.random.default_rng(0).standard_normal((70, 8)).astype(np.float32)
    np.savez(folder / "rows.npz", x=rows, labels=np.arange(70) % 5)
    done = qcompile("analyze", "networks:classifier", "--data", "rows.npz", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    assert "ReLU" in done.stdout
    assert "written: page.html" in done.stdout
    assert (folder / "page.html").stat().st_size > 10_000
    done = qcompile("analyze", "networks:classifier", "--input", "4x8", "--json")
    found = json.loads(done.stdout)
    assert [layer["kind"] for layer in found["layers"]] == ["Linear", "ReLU", "Linear"]
    assert found["layers"][1]["output"]["zeros"] > 0.2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "--data"), (["--data", "none.npz"], "none.npz"), (["--data", "odd.npz"], "one length")],
)
def test_analyze_refuses_what_it_cannot_run_on(folder, qcompile, arguments, says):
    np.savez(folder / "odd.npz", x=np.ones((3, 8), np.float32), labels=np.ones(2, np.int64))
    done = qcompile("analyze", "networks:classifier", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
