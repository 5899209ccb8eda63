"""Layers that have to gain from an export, or not to lose: a text recogniser's, a small one."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import qcompile
from qcompile.errors import ExportError
from retrieval import graphs
from retrieval.heads import Head

__all__ = ["Exported", "bars", "recogniser", "small"]

_EXAMPLES = Path(__file__).parents[2] / "examples"
_TEXTS = ("The quick brown fox, 18710 classes & (1 line)!", "Zürich 2024-11-23 @ 17:05")


@dataclass(frozen=True)
class Exported:
    """Median milliseconds of a part of a model before and after `qcompile export`."""

    model: str
    part: str
    before_ms: float
    after_ms: float
    same: bool


def recogniser() -> list[Exported]:
    """Export PP-OCRv6's recogniser, time it in turns with the original and compare what it reads.

    Returns:
        Its output layer and the whole model; nothing where rapidocr is not installed.
    """
    sys.path.append(str(_EXAMPLES))
    try:
        from ocr_head import MODEL, Reader, render
    except ImportError:
        return []
    reader = Reader()
    images = [render(text) for text in _TEXTS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recogniser.onnx"
        result = qcompile.export_onnx(MODEL, file, inputs={"x": reader.pixels(images[0])})
        read = [
            [reader.read(image, model, plugin=plugin) for image in images]
            for model, plugin in ((MODEL, False), (file, True))
        ]
    return [
        Exported("PP-OCRv6 recogniser", part, before, after, read[0] == read[1])
        for part, (before, after) in result.latency.items()
    ]


def small() -> list[Exported]:
    """Export a layer of 1,000 classes: it is left alone; time it where it is asked for."""
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(1_000, 128)), random.normal(size=1_000)
    queries = np.maximum(random.normal(size=(8, 128)), 0).astype(np.float32)
    parts = (weight.astype(np.float32), bias.astype(np.float32), queries, queries)
    head = Head("small", *parts, np.zeros(len(queries), np.int64))
    with tempfile.TemporaryDirectory() as folder:
        source, file = Path(folder) / "small.onnx", Path(folder) / "exported.onnx"
        graphs.write(graphs.FLOAT, head, 10, source)
        try:
            qcompile.export_onnx(source, file)
        except ExportError as error:
            left_alone = "1,000" in str(error) or "1000" in str(error)
        else:
            left_alone = False
        result = qcompile.export_onnx(source, file, min_outputs=1, inputs={"hidden": queries[:1]})
    before, after = result.latency["model"]
    return [Exported("1,000 classes", "model", before, after, left_alone)]


def bars(rows: list[Exported]) -> list[dict[str, Any]]:
    """Say whether the recogniser became faster at the same text, a small layer left alone."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if "OCR" in row.model:
            name, value = "as fast, same text", round(row.before_ms / row.after_ms, 2)
        else:
            name, value = "left alone unless asked for", float(row.same)
        ok = value >= 1 and row.same
        found.append(
            {"name": f"{row.model}, {row.part}: {name}", "value": value, "target": 1.0, "ok": ok}
        )
    return found
