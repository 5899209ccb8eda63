"""Huge output layers on a CPU: onnxruntime's dense operators against qcompile's, in whole runs.

Each case is one graph, made twice: MatMul, Add and TopK or Softmax for plain onnxruntime, and the
qcompile operator for onnxruntime with the plugin. Both sessions get the same settings. Variants
take turns within a run, a few calls at a time, and each figure is a median over all rounds.

    python benchmarks/output_layer.py [--quick] [--json FILE]

Random layers: Gaussian rows, and queries that are half zero (as after a ReLU) and lean towards one
row. The text layer: the head of rapidocr's PP-OCR recogniser and the activations that a rendered
line of text gives, where rapidocr is installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from recording import record
from rich.console import Console
from rich.table import Table

import qcompile
from qcompile import ops
from qcompile.passes.onnx.functions import function_for
from qcompile.runtime import _core

PAUSE = 0.06  # seconds between variants: so long, nearly, do a session's idle threads spin
CALLS = 4  # of one variant at a time, the first of which is not counted


@dataclass(frozen=True)
class Case:
    """One graph and its input; ``operator`` says what it computes."""

    layer: str
    operator: ops.Operator
    k: int
    hidden: np.ndarray
    threads: int

    @property
    def task(self) -> str:
        """Name for the table."""
        names = {"LinearTopK": f"top {self.k}", "LinearSoftmax": "softmax", "Linear": "scores"}
        return names[self.operator.name]


@dataclass(frozen=True)
class Row:
    """Median milliseconds of one run, and how well the answers agree."""

    layer: str
    task: str
    batch: int
    threads: int
    onnxruntime_ms: float
    qcompile_ms: float
    openmp_ms: float | None  # with as many threads as there are processors
    speedup: float
    agreement: float


def dense_model(case: Case, weight: np.ndarray, bias: np.ndarray) -> bytes:
    """Return what a framework would export: the weight transposed, a constant for MatMul."""
    make = onnx.helper.make_node
    nodes = [make("MatMul", ["hidden", "weight"], ["product"])]
    initializers = {"weight": np.ascontiguousarray(weight.T), "bias": bias}
    outputs = ["scores"]
    if case.operator is ops.LINEAR_TOP_K:
        nodes += [
            make("Add", ["product", "bias"], ["all"]),
            make("TopK", ["all", "k"], ["scores", "ids"]),
        ]
        initializers["k"] = np.array([case.k])
        outputs = ["scores", "ids"]
    elif case.operator is ops.LINEAR_SOFTMAX:
        nodes += [
            make("Add", ["product", "bias"], ["all"]),
            make("Softmax", ["all"], ["scores"], axis=-1),
        ]
    else:
        nodes.append(make("Add", ["product", "bias"], ["scores"]))
    tensor = onnx.helper.make_tensor_value_info
    kinds = {"scores": onnx.TensorProto.FLOAT, "ids": onnx.TensorProto.INT64}
    graph = onnx.helper.make_graph(
        nodes,
        "dense",
        [tensor("hidden", onnx.TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [tensor(name, kinds[name], ["batch", None]) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    imports = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def qcompile_model(case: Case, weight: np.ndarray, bias: np.ndarray) -> bytes:
    """Return the same layer as one operator."""
    every = (weight, bias, *_core.pack_rows(weight))
    arrays = dict(zip(case.operator.inputs[1:], every, strict=False))  # Linear takes two
    values = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in arrays.items()
    ]
    hidden = ir.Value(
        name="hidden",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(["batch", weight.shape[1]]),
    )
    attributes = [ir.AttrInt64("k", case.k)] if case.operator.attributes else []
    node = ir.Node(
        ops.DOMAIN,
        case.operator.name,
        [hidden, *values],
        attributes,
        num_outputs=len(case.operator.required_outputs),
    )
    for value, name in zip(node.outputs, case.operator.required_outputs, strict=True):
        value.name = name
        value.type = ir.TensorType(ir.DataType.INT64 if name == "ids" else ir.DataType.FLOAT)
    graph = ir.Graph(
        [hidden],
        node.outputs,
        nodes=[node],
        initializers=values,
        opset_imports={"": 18, ops.DOMAIN: ops.VERSION},
        name="qcompile",
    )
    model = ir.Model(graph, ir_version=8, functions=[function_for(case.operator)])
    return ir.to_proto(model).SerializeToString()


def session(model: bytes, threads: int, backend: str | None) -> onnxruntime.InferenceSession:
    """Return a session; ``backend`` is the plugin's, ``None`` for no plugin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if backend is not None:
        os.environ["QCOMPILE_PARALLEL"] = backend
        qcompile.register(options)
    made = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    os.environ.pop("QCOMPILE_PARALLEL", None)
    return made


def agreement(case: Case, found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Return the share of equal ids, or of queries with the same best row."""
    if case.operator is ops.LINEAR_TOP_K:
        return float((found[1] == expected[1]).mean())
    return float((found[0].argmax(-1) == expected[0].argmax(-1)).mean())


def measure(case: Case, weight: np.ndarray, bias: np.ndarray, rounds: int) -> Row:
    """Time one case."""
    ours = qcompile_model(case, weight, bias)
    sessions = {
        "dense": session(dense_model(case, weight, bias), case.threads, None),
        "qcompile": session(ours, case.threads, "onnxruntime"),
    }
    if case.threads == os.cpu_count():  # OpenMP does not know the session's number of threads
        sessions["openmp"] = session(ours, case.threads, "openmp")
    feeds = {"hidden": case.hidden}
    answers = {name: made.run(None, feeds) for name, made in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, made in sessions.items():
            time.sleep(PAUSE)
            made.run(None, feeds)
            for _ in range(CALLS - 1):
                start = time.perf_counter()
                made.run(None, feeds)
                times[name].append(1e3 * (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in times.items()}
    return Row(
        layer=case.layer,
        task=case.task,
        batch=len(case.hidden),
        threads=case.threads,
        onnxruntime_ms=round(median["dense"], 4),
        qcompile_ms=round(median["qcompile"], 4),
        openmp_ms=round(median["openmp"], 4) if "openmp" in median else None,
        speedup=round(median["dense"] / median["qcompile"], 2),
        agreement=agreement(case, answers["qcompile"], answers["dense"]),
    )


def random_layer(rows: int, depth: int, queries: int) -> tuple[np.ndarray, ...]:
    """Return a weight, a bias and hidden vectors."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(rows, depth)).astype(np.float32)
    bias = rng.normal(size=rows).astype(np.float32)
    leaning = 0.5 * weight[rng.integers(rows, size=queries)] + rng.normal(size=(queries, depth))
    return weight, bias, np.maximum(leaning, 0).astype(np.float32)


def text_layer() -> tuple[np.ndarray, ...] | None:
    """Return the recogniser's head and its activations, or nothing without rapidocr."""
    try:
        import rapidocr
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return None
    paths = sorted((Path(rapidocr.__file__).parent / "models").glob("*_rec_*.onnx"))
    model = onnx.load(paths[0])
    product = next(node for node in reversed(model.graph.node) if node.op_type == "MatMul")
    addition = next(node for node in model.graph.node if product.output[0] in node.input)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = onnx.numpy_helper.to_array(constants[product.input[1]]).T
    bias = next(constants[name] for name in addition.input if name in constants)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(product.input[0], onnx.TensorProto.FLOAT, None)
    )
    image = Image.new("RGB", (640, 48), "white")
    font = ImageFont.load_default(size=30)
    ImageDraw.Draw(image).text((6, 4), "The quick brown fox jumps over it 123", "black", font)
    pixels = (np.asarray(image, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
    recogniser = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    hidden = recogniser.run([product.input[0]], {model.graph.input[0].name: pixels})[0][0]
    return np.ascontiguousarray(weight), onnx.numpy_helper.to_array(bias), hidden


def run(quick: bool) -> list[Row]:
    """Measure every case."""
    rounds = 5 if quick else 15
    sizes = [(18_841, 128)] if quick else [(18_841, 128), (200_000, 128)]
    tasks = [
        (ops.LINEAR_TOP_K, 1),
        (ops.LINEAR_TOP_K, 10),
        (ops.LINEAR_SOFTMAX, 1),
        (ops.LINEAR, 1),
    ]
    stderr = Console(stderr=True)
    rows = []
    layers = {f"{n:,} × {d}": random_layer(n, d, 64) for n, d in sizes}
    text = text_layer()
    if text is not None:
        layers[f"PP-OCR {len(text[0]):,} × {text[0].shape[1]}"] = text
    for name, (weight, bias, hidden) in layers.items():
        for operator, k in tasks:
            for batch in (1, len(hidden)):
                for threads in (1, 2):
                    case = Case(name, operator, k, hidden[:batch], threads)
                    stderr.print(f"{name}: {case.task}, batch {batch}, {threads} threads")
                    rows.append(measure(case, weight, bias, rounds))
    return rows


def bars(rows: list[Row]) -> list[dict[str, Any]]:
    """Compare with what the layer has to reach."""
    fast = [row.speedup for row in rows if row.task.startswith("top")]
    text = [row.speedup for row in rows if row.task == "softmax" and row.layer.startswith("PP-OCR")]
    # Near-ties fall differently in two orders of summation, both right in fp32.
    least = min(row.agreement for row in rows)
    checks = [
        ("least speed-up of top k over onnxruntime", min(fast), 1.0),
        ("least share of equal answers", least, 0.99),
    ]
    if text:
        checks.append(("least speed-up of the text head's softmax", min(text), 1.0))
    return [{"name": n, "value": v, "target": t, "ok": v >= t} for n, v, t in checks]


def draw(rows: list[Row]) -> Table:
    """Lay the rows out for a terminal."""
    table = Table(title="one run, median milliseconds")
    for head in ("layer", "task", "batch", "threads", "onnxruntime", "qcompile", "(openmp)"):
        table.add_column(head, justify="left" if head in ("layer", "task") else "right")
    table.add_column("speed-up", justify="right")
    table.add_column("same answers", justify="right")
    for row in rows:
        table.add_row(
            row.layer,
            row.task,
            str(row.batch),
            str(row.threads),
            f"{row.onnxruntime_ms:.3f}",
            f"{row.qcompile_ms:.3f}",
            "" if row.openmp_ms is None else f"{row.openmp_ms:.3f}",
            f"{row.speedup:.2f} ×",
            f"{row.agreement:.2%}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size, fewer rounds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows = run(options.quick)
    Console(width=120 if not sys.stdout.isatty() else None).print(draw(rows))
    results = bars(rows)
    for bar in results:
        verdict = "ok" if bar["ok"] else "FAILED"
        print(f"{verdict:<6} {bar['name']}: {bar['value']} (at least {bar['target']})")
    return record(options.json, ("onnxruntime", "numpy"), rows, results)


if __name__ == "__main__":
    sys.exit(main())
