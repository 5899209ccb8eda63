"""A recogniser from a PyPI wheel reads the same text, character for character, once exported."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.exporter import export_onnx

EXAMPLE = Path(__file__).parents[2] / "examples" / "ocr_head.py"


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def exported(example, tmp_path_factory):
    path = tmp_path_factory.mktemp("ocr") / "recogniser.qcompile.onnx"
    return export_onnx(example["MODEL"], path, measure=False)


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox, 18710 classes & (1 line)!",
        "Zürich 2024-11-23 @ 17:05",
        "x",
    ],
)
def test_the_text_stays_character_for_character(example, exported, text):
    image, reader = example["render"](text), example["Reader"]()
    before = reader.read(image, example["MODEL"], plugin=False)
    assert len(before) > 0
    for plugin in (False, True):
        assert reader.read(image, exported.path, plugin=plugin) == before


def test_it_reads_what_was_written(example, exported):
    reader = example["Reader"]()
    image = example["render"](example["TEXT"])
    assert reader.read(image, exported.path, plugin=True) == example["TEXT"]


def test_the_head_alone_is_replaced(example, exported):
    (head,) = exported.heads
    assert (head.outputs, head.depth, head.became) == (18710, 120, "LinearSoftmax")
    assert head.kind == "MatMul+Add+Identity+Softmax"
    before = onnx.load(example["MODEL"]).graph
    after = onnx.load(exported.path).graph
    # Four nodes give way to two: the operator and the Identity behind it.
    assert len(after.node) == len(before.node) - 2
    assert after.output == before.output
    assert after.input == before.input
    assert exported.ir_version == 9
    metadata = {entry.key for entry in onnx.load(exported.path).metadata_props}
    assert {"character", "qcompile.version"} <= metadata


def test_the_best_of_every_column(example, exported, tmp_path):
    """With top_k=1 the decoder gets the one character that it would have picked."""
    pixels = {"x": np.random.default_rng(0).standard_normal((2, 3, 48, 96)).astype(np.float32)}
    best = export_onnx(
        example["MODEL"], tmp_path / "best.onnx", top_k=1, measure=False, inputs=pixels
    )
    assert {difference.variant for difference in best.differences} == {"plugin", "functions"}


def test_the_example_runs(example, capsys):
    example["main"]()
    told = capsys.readouterr().out
    assert told.count(example["TEXT"]) == 4
    assert "latency of the head" in told
