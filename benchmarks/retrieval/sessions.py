"""Models that onnxruntime runs: ours with the plugin, and what standard operators can do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qcompile import ops
from retrieval.engine import Engine, K, Point, Search
from retrieval.heads import Head

__all__ = ["Hashed", "Ours", "Standard"]

_ALL = 1_000_000  # more groups of cells than there are


class Standard(Engine):
    """A model in standard operators."""

    threads = (1, 2)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def build(self, head: Head, place: Path) -> Callable[[], None]:
        from retrieval import graphs

        return lambda: graphs.write(self.kind, head, K, place / "model.onnx")

    def open(self, head: Head, place: Path, threads: int) -> None:
        self.session = _session(place / "model.onnx", threads, plugin=False)

    def search(self, point: Point) -> Search:
        return _run(self.session)


class Ours(Engine):
    """The operator LinearTopK in a file that needs the plugin to be fast."""

    def __init__(self, mode: str, rescore: str = "fp32", bits: int = 8) -> None:
        self.mode = mode
        self.rescore = rescore
        self.bits = bits
        self.layout = f", layout {ops.VERSION}" + (f", {bits} bits" if mode == "cells" else "")
        self.approximate = mode != "exact"
        self.threads = (1,) if self.approximate or rescore != "fp32" else (1, 2)

    def build(self, head: Head, place: Path) -> Callable[[], None]:
        weight, bias = np.asarray(head.weight), np.asarray(head.bias)
        made = self._index(weight, bias)
        return lambda: self._write(weight, bias, made, place)

    def _index(self, weight: np.ndarray, bias: np.ndarray) -> Any:
        from qcompile.runtime import index

        if self.mode == "exact":
            return index.build_exact(weight)
        cells = index.build_cells(weight, bias)
        return cells if self.bits == 8 else index.code_cells(weight, cells, self.bits)

    def _write(self, weight: np.ndarray, bias: np.ndarray, made: Any, place: Path) -> None:
        import onnx_ir as ir

        from qcompile.passes.onnx.head import top_k_model
        from qcompile.runtime.index import store

        rows, kept = store(weight, made, self.rescore)
        model = top_k_model(rows, bias, K, kept)
        ir.save(model, place / "model.onnx", external_data="model.onnx.data")

    def open(self, head: Head, place: Path, threads: int) -> None:
        self.place, self.opened = place, threads
        if not self.approximate:
            self.session = _session(place / "model.onnx", threads, plugin=True)

    def points(self, head: Head) -> list[Point]:
        if not self.approximate:
            return [{}]
        few = (4, 6, 8, 10, 12, 16, 24)
        many = (32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 448, 512, 640, 768)
        narrow, wide = {8: (12, 32), 4: (12, 20), 2: (24, 60)}[self.bits]
        places = ((8, narrow), (16, narrow), (24, narrow), (16, wide))
        quick = [(p, g, r) for p in few for g, r in places]
        thorough = [(p, g, r) for p in many for g in (32, _ALL) for r in (narrow, wide)]
        return [
            {"probes": p, "groups": g, "rescore": r}
            for p, g, r in quick + thorough
            if g == _ALL or p < 200
        ]

    def search(self, point: Point) -> Search:
        if not point:
            return _run(self.session)
        return _run(_session(_with_attributes(self.place, point), self.opened, plugin=True))


class Hashed(Ours):
    """The same operator over the hash tables that the layer was trained with."""

    heads = ("geonames",)

    def __init__(self) -> None:
        super().__init__("lsh")

    def _index(self, weight: np.ndarray, bias: np.ndarray) -> Any:
        from qcompile import LSH
        from qcompile.calibration.tables import Tables
        from qcompile.runtime.index import build_exact

        return Tables(LSH()).build(weight, build_exact(weight))

    def points(self, head: Head) -> list[Point]:
        return [
            {"probes": probes, "rescore": rescore}
            for probes in (1, 4, 16)
            for rescore in (64, 256, 1024)
        ]


def _with_attributes(place: Path, point: Point) -> Path:
    """Write the graph once more, over the same weights, with other attributes."""
    import onnx

    name = "-".join(f"{key}{value}" for key, value in point.items())
    file = place / f"model.{name}.onnx"
    if not file.exists():
        model = onnx.load(place / "model.onnx", load_external_data=False)
        node = next(node for node in model.graph.node if node.op_type == "LinearTopK")
        for key, value in point.items():
            for old in [one for one in node.attribute if one.name == key]:
                node.attribute.remove(old)
            node.attribute.append(onnx.helper.make_attribute(key, value))
        file.write_bytes(model.SerializeToString())
    return file


def _session(file: Path, threads: int, *, plugin: bool) -> Any:
    import onnxruntime

    import qcompile

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if plugin:
        qcompile.register(options)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run(session: Any) -> Search:
    return lambda queries: session.run(None, {"hidden": queries})[1]
