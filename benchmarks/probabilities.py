"""The k best probabilities of a huge output layer: with and without all the others.

Each head is one graph of MatMul, Add, Softmax and TopK, run by onnxruntime as it is; with
LinearSoftmax and TopK over all probabilities; and as an export makes it, with LinearTopK and its
logarithm of the partition function, exact or estimated in cells of which 32 are searched. Whole
Run() calls of one thread take turns, and each figure is a median. Every call has other queries;
"flat" divides them by twenty, so that no class stands out.

    python benchmarks/probabilities.py [--quick] [--heads w20 w200 w670] [--json FILE]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from recording import record
from retrieval.heads import synthetic
from rich.console import Console
from rich.table import Table

import qcompile
from qcompile.passes.onnx.head import top_k_model
from qcompile.passes.onnx.output_layer import OutputLayer
from qcompile.passes.onnx.top_k import append_top_k
from qcompile.runtime.index import build_cells

K = 10
FLAT = 0.05
stderr = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Row:
    """Median milliseconds of a call, and how far the answers are from float64.

    Args:
        head: of :mod:`retrieval.heads`.
        queries: ``real`` or ``flat``.
        batch: queries of a call.
        onnxruntime_ms: without the plugin, MatMul, Add, Softmax and TopK.
        all_ms: LinearSoftmax and TopK.
        best_ms: LinearTopK with the partition function.
        scores_ms: LinearTopK without.
        cells_ms: LinearTopK with the partition function, in mode cells.
        log_error: largest difference of a probability's logarithm from float64's.
        cells_log_error: what 99 % of the vectors do not exceed in mode cells.
    """

    head: str
    queries: str
    batch: int
    onnxruntime_ms: float
    all_ms: float
    best_ms: float
    scores_ms: float
    cells_ms: float
    log_error: float
    cells_log_error: float


def source(weight: np.ndarray, bias: np.ndarray, softmax: bool = True) -> ir.Model:
    """Return what a framework would export, without TopK: hidden [B, d] → y [B, N]."""
    make, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("MatMul", ["hidden", "w"], ["product"]),
        make("Add", ["product", "b"], ["scores" if softmax else "y"]),
    ]
    if softmax:
        nodes.append(make("Softmax", ["scores"], ["y"], axis=-1))
    rows, depth = weight.shape
    graph = onnx.helper.make_graph(
        nodes,
        "head",
        [tensor("hidden", onnx.TensorProto.FLOAT, ["batch", depth])],
        [tensor("y", onnx.TensorProto.FLOAT, ["batch", rows])],
        [
            onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), "w"),
            onnx.numpy_helper.from_array(bias, "b"),
        ],
    )
    imports = [onnx.helper.make_opsetid("", 18)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=9))


def with_top_k(model: ir.Model) -> ir.Model:
    """Take the best of a model's output with a standard TopK."""
    best = append_top_k(model, model.graph.outputs[0], K)
    model.graph.outputs[:] = best
    for value, kind in zip(best, (ir.DataType.FLOAT, ir.DataType.INT64), strict=True):
        value.type = ir.TensorType(kind)
    return model


def session(model: ir.Model, plugin: bool) -> onnxruntime.InferenceSession:
    """Return a session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if plugin:
        qcompile.register(options)
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def variants(weight: np.ndarray, bias: np.ndarray) -> dict[str, onnxruntime.InferenceSession]:
    """Return a session for each way to compute."""
    made = {"onnxruntime": session(with_top_k(source(weight, bias)), plugin=False)}
    every = source(weight, bias)
    OutputLayer(min_outputs=1)(every)
    made["all"] = session(with_top_k(every), plugin=True)
    for name, softmax in (("best", True), ("scores", False)):
        best = source(weight, bias, softmax)
        OutputLayer(min_outputs=1, top_k=K)(best)
        made[name] = session(best, plugin=True)
    index = build_cells(weight, bias, cells=math.ceil(10 * math.sqrt(len(weight))))
    made["cells"] = session(top_k_model(weight, bias, K, index, log_sum=True), plugin=True)
    return made


def measure(
    sessions: dict[str, onnxruntime.InferenceSession], queries: np.ndarray, batch: int, calls: int
) -> dict[str, float]:
    """Return the median milliseconds of a call of each."""
    feeds = [queries[at : at + batch] for at in range(0, len(queries) - batch + 1, batch)]
    turns = {name: cycle(feeds) for name in sessions}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for call in range(calls + 1):
        for name, made in sessions.items():
            hidden = next(turns[name])
            start = time.perf_counter()
            made.run(None, {"hidden": hidden})
            if call:  # the first is not counted
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(taken), 4) for name, taken in times.items()}


def log_error(
    made: onnxruntime.InferenceSession, queries: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> float:
    """Return the largest difference of a logarithm of the best probabilities from float64's."""
    found, ids = made.run(None, {"hidden": queries})
    exact = np.take_along_axis(log_probabilities(queries, weight, bias), ids, 1)
    seen = found > np.finfo(np.float32).tiny  # the logarithm of what is flushed to zero is lost
    return float(np.abs(np.log(found[seen], dtype=np.float64) - exact[seen]).max())


def cells_log_error(
    made: onnxruntime.InferenceSession, queries: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> float:
    """Return what the difference of the best's logarithm exceeds for one vector in a hundred."""
    errors = []
    for some in np.array_split(queries, 8):
        scores, ids, log_sum = made.run(None, {"hidden": some})
        exact = np.take_along_axis(log_probabilities(some, weight, bias), ids, 1)
        errors.append(np.abs(scores[:, 0] - log_sum[:, 0] - exact[:, 0]))
    return float(np.quantile(np.concatenate(errors), 0.99))


def log_probabilities(queries: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return them in float64, [B, N]."""
    scores = queries.astype(np.float64) @ weight.T.astype(np.float64) + bias
    best = scores.max(axis=1, keepdims=True)
    return scores - best - np.log(np.exp(scores - best).sum(axis=1, keepdims=True))


def run(heads: list[str], quick: bool) -> list[Row]:
    """Measure every head."""
    rows = []
    for name in heads:
        stderr.print(f"building {name}")
        head = synthetic(name)
        weight, bias = np.array(head.weight), np.array(head.bias)
        sessions = variants(weight, bias)
        for kind, size in (("real", 1.0), ("flat", FLAT)):
            queries = np.array(head.queries[:2048]) * np.float32(size)
            error = log_error(sessions["best"], queries[:64], weight, bias)
            estimated = cells_log_error(sessions["cells"], queries[:512], weight, bias)
            for batch, calls in ((1, 60 if quick else 200), (64, 5 if quick else 15)):
                stderr.print(f"{name}, {kind} queries, batch {batch}")
                ms = measure(sessions, queries, batch, calls)
                figures = {f"{variant}_ms": value for variant, value in ms.items()}
                rows.append(
                    Row(name, kind, batch, **figures, log_error=error, cells_log_error=estimated)
                )
    return rows


def draw(rows: list[Row]) -> Table:
    """Lay the rows out for a terminal."""
    table = Table(title=f"the {K} best probabilities, one thread, median milliseconds of a call")
    for title in ("head", "queries", "batch", "onnxruntime", "LinearSoftmax + TopK"):
        table.add_column(title, justify="left" if title in ("head", "queries") else "right")
    for title in (
        "LinearTopK, log_sum",
        "of onnxruntime",
        "LinearTopK alone",
        "error of log p",
        "cells",
        "its error",
    ):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            *(row.head, row.queries, str(row.batch), f"{row.onnxruntime_ms:.3f}"),
            *(f"{row.all_ms:.3f}", f"{row.best_ms:.3f}"),
            f"{row.onnxruntime_ms / row.best_ms:.2f} ×",
            *(f"{row.scores_ms:.3f}", f"{row.log_error:.1e}"),
            *(f"{row.cells_ms:.3f}", f"{row.cells_log_error:.1e}"),
        )
    return table


def bar(rows: list[Row], queries: str, batch: int) -> dict[str, object]:
    """Return how much faster than onnxruntime the k best are, on the head where they are least."""
    least = min(
        row.onnxruntime_ms / row.best_ms
        for row in rows
        if row.queries == queries and row.batch == batch
    )
    name = f"least speed-up over onnxruntime, {queries} queries, batch {batch}"
    return {"name": name, "value": round(least, 3), "target": 1.0, "ok": least >= 1.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer calls, the smallest head")
    parser.add_argument("--heads", nargs="+", default=None, metavar="HEAD", help="w20, w200, w670")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows = run(
        options.heads or (["w20"] if options.quick else ["w20", "w200", "w670"]), options.quick
    )
    Console(width=130 if not sys.stdout.isatty() else None).print(draw(rows))
    bars = [bar(rows, queries, batch) for queries in ("real", "flat") for batch in (1, 64)]
    for one in bars:
        verdict = "ok" if one["ok"] else "FAILED"
        print(f"{verdict:<6} {one['name']}: {one['value']} (at least {one['target']})")
    return record(options.json, ("onnxruntime", "numpy"), rows, bars)


if __name__ == "__main__":
    sys.exit(main())
