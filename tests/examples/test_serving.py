"""The serving examples run, and hosts in other languages answer as Python does."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import qcompile

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "serve_python.py"


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def model(example, tmp_path_factory) -> Path:
    return example["export"](tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def hidden(example) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, example["WIDTH"])).astype(np.float32)


def test_python(example, tmp_path, capsys):
    example["serve"](tmp_path)
    printed = capsys.readouterr().out
    assert "the same without the plugin: 100.00%" in printed


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_cpp(example, model, hidden, tmp_path):
    program = tmp_path / "serve_cpp"
    source, headers = ROOT / "examples" / "serve_cpp.cc", ROOT / "runtime" / "csrc" / "ort"
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{headers}", "-o", str(program)]
    subprocess.run(["c++", *flags, str(source), "-ldl"], check=True)
    capi = Path(onnxruntime.__file__).parent / "capi"
    library = next(capi.glob("libonnxruntime.so*"))
    session = example["open_session"](model)
    name = session.get_inputs()[0].name
    arguments = [library, qcompile.get_library_path(), model, name, hidden.shape[1]]
    done = subprocess.run(
        [program, *map(str, arguments)], input=hidden.tobytes(), capture_output=True, check=True
    )
    scores, ids = session.run(["scores", "ids"], {name: hidden})
    answers = np.array([line.split() for line in done.stdout.splitlines()], float)
    assert np.array_equal(answers[:, 0].astype(int), ids.ravel())
    assert np.array_equal(answers[:, 1].astype(np.float32), scores.ravel())


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_cpp_says_what_is_wrong(tmp_path, model):
    program = tmp_path / "serve_cpp"
    source, headers = ROOT / "examples" / "serve_cpp.cc", ROOT / "runtime" / "csrc" / "ort"
    flags = ["-std=c++20", f"-I{headers}", "-o", str(program)]
    subprocess.run(["c++", *flags, str(source), "-ldl"], check=True)
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    arguments = [library, "/nowhere.so", model, "input", "64"]
    done = subprocess.run([program, *map(str, arguments)], input=b"", capture_output=True)
    assert done.returncode == 1
    assert b"/nowhere.so" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray(model, hidden, example):
    pytest.importorskip("ray", reason="the extra `serve` is not installed")
    module = runpy.run_path(str(ROOT / "examples" / "serve_ray.py"), run_name="serve_ray")
    vectors = np.tile(hidden, (40, 1))
    processes, ids = module["run"](model, vectors)
    assert len(processes) == 2
    session = example["open_session"](model)
    expected = session.run(["ids"], {session.get_inputs()[0].name: vectors})[0]
    assert np.array_equal(ids, expected)


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_answer_as_the_whole(shards, capsys):
    runpy.run_path(str(ROOT / "examples" / "serve_shards.py"))["main"](shards)
    assert "the same answers" in capsys.readouterr().out


def test_merging_prefers_the_smaller_of_equal_classes():
    merge = runpy.run_path(str(ROOT / "examples" / "serve_shards.py"))["merge"]
    scores = np.array([[3.0, 1.0] + [0.0] * 8], np.float32)
    ids = np.arange(10)[None]
    _, merged = merge([(scores, ids), (scores, ids)], [0, 100])
    assert merged[0, :6].tolist() == [0, 100, 1, 101, 2, 3]
