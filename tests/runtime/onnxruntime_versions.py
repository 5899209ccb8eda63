"""Run the built plugin on several releases of onnxruntime, each in an environment of its own.

    python onnxruntime_versions.py CACHE [VERSION ...]

CACHE is a folder that keeps the environments between runs. Prints a table; exit status 1 if any
release fails. Not run by pytest: it downloads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
from conftest import make_inputs, make_model

import qcompile
from qcompile import ops
from qcompile.passes.onnx.head import top_k_model
from qcompile.runtime.index import build_cells, build_exact, store
from qcompile.runtime.reference import head
from qcompile.runtime.reference.index import Packed, rows

VERSIONS = ("1.17.3", "1.20.1", "1.24.4", "1.32.0")
OPSETS = (11, 18)
SMOKE = Path(__file__).with_name("plugin_smoke.py")


def write_models(folder: Path) -> None:
    """Write a model of every operator and operator set, with an input and its answers."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5003, 50)).astype(np.float32)
    bias = rng.normal(size=5003).astype(np.float32)
    hidden = rng.normal(size=(3, 7, 50)).astype(np.float32)
    scores, ids = head.linear_top_k(hidden, weight, bias, 5)
    answers = {
        ops.LINEAR_TOP_K: {"0_scores": scores, "1_ids": ids},
        ops.LINEAR_SOFTMAX: {"0_probabilities": head.linear_softmax(hidden, weight, bias)},
        ops.LINEAR: {"0_scores": head.linear(hidden, weight, bias)},
    }
    for operator, outputs in answers.items():
        for opset in OPSETS:
            arrays = make_inputs(operator, weight, bias)
            model = make_model(operator, arrays, shape=("batch", "time", 50), k=5, opset=opset)
            write(folder / f"{operator.name}-opset{opset}.onnx", model, hidden, outputs)
    # With every cell searched the answers are exact, too.
    index = build_cells(weight, bias).with_attributes(probes=len(weight), groups=len(weight))
    for opset in OPSETS:
        model = top_k_model(weight, bias, 5, index, opset=opset)
        path = folder / f"{ops.LINEAR_TOP_K.name}-cells-opset{opset}.onnx"
        flat = {name: array.reshape(-1, 5) for name, array in answers[ops.LINEAR_TOP_K].items()}
        write(path, model, hidden.reshape(-1, 50), flat)

    exact = build_exact(weight)
    packed = Packed(*exact.arrays.values())
    rounded = weight.astype(ml_dtypes.bfloat16).astype(np.float32)
    for rescore, meant in (("bf16", rounded), ("none", rows(packed, 50))):
        kept, stored = store(weight, exact, rescore)
        answer = head.linear_top_k(hidden.reshape(-1, 50), meant, bias, 5)
        path = folder / f"{ops.LINEAR_TOP_K.name}-{rescore}.onnx"
        named = dict(zip(("0_scores", "1_ids"), answer, strict=True))
        write(path, top_k_model(kept, bias, 5, stored), hidden.reshape(-1, 50), named)


def write(path: Path, model: ir.Model, hidden: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
    """Write a model, and beside it an input with its answers."""
    ir.save(model, path)
    np.savez(path.with_suffix(".npz"), hidden=hidden, **outputs)


def python_with(version: str, cache: Path) -> Path:
    """Return the interpreter of an environment that has this onnxruntime and little else."""
    folder = cache / f"onnxruntime-{version}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        # Releases before 1.19 were built for NumPy 1.
        old = int(version.split(".")[1]) < 19
        packages = [f"onnxruntime=={version}", "numpy<2" if old else "numpy"]
        # A constraints file would pin the one onnxruntime that the project is developed with.
        free = {name: text for name, text in os.environ.items() if name != "PIP_CONSTRAINT"}
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True, env=free)
        done.touch()
    return python


def main() -> int:
    """Check every version and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    arguments = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        for version in arguments.versions:
            python = python_with(version, arguments.cache.resolve())
            command = [str(python), str(SMOKE), qcompile.get_library_path(), folder]
            if subprocess.run(command, cwd=folder).returncode != 0:
                failed.append(version)
    print(f"failed on: {', '.join(failed)}" if failed else "all versions passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
