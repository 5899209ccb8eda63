"""Every engine that the benchmark compares."""

from __future__ import annotations

from importlib.util import find_spec

from retrieval import graphs, peers
from retrieval.engine import Engine
from retrieval.sessions import Hashed, Ours, Standard

__all__ = ["ENGINES", "missing"]

ENGINES: dict[str, Engine] = {
    "qcompile exact": Ours("exact"),
    "qcompile exact, bf16": Ours("exact", "bf16"),
    "qcompile exact, none": Ours("exact", "none"),
    "qcompile cells": Ours("cells", bits=4),
    "qcompile cells, 8 bits": Ours("cells"),
    "qcompile cells, 2 bits": Ours("cells", bits=2),
    "qcompile lsh": Hashed(),
    "onnxruntime fp32": Standard(graphs.FLOAT),
    "onnxruntime int8": Standard(graphs.INT8),
    "onnxruntime int8, rescored": Standard(graphs.INT8_RESCORED),
    "onnxruntime MatMulNBits 8": Standard(graphs.NBITS),
    "ScaNN": peers.ScaNN(),
    "faiss IVF Flat": peers.FaissFlat(),
    "faiss IVF FastScan": peers.FaissFastScan(),
    "faiss HNSW": peers.FaissHNSW(),
    "hnswlib": peers.Hnswlib(),
}
"""By name, ours first."""


def missing(engine: Engine) -> bool:
    """Tell whether the package that an engine needs is not installed."""
    return find_spec(engine.package) is None
