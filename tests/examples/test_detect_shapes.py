"""The example on detection learns, goes on, and draws; it reads VOC's folders."""

import json

import numpy as np
import pytest
from PIL import Image

from qcompile.data.shapes import Shapes
from qcompile.training import supervised


@pytest.fixture
def example(load_example):
    return load_example("detect_shapes")


def options(folder, *more):
    return ["--side", "48", "--scale", "0.0625", "--epochs", "2", "--output", str(folder), *more]


def test_it_learns_draws_and_goes_on(example, tmp_path, capsys, monkeypatch):
    drawn = options(tmp_path, "--images", "96", "--model", "ssd7", "qssd7")
    assert example.main(drawn) == 0
    told = capsys.readouterr().out
    for name in ("ssd7", "qssd7"):
        state = json.loads((tmp_path / name / "step-000000000002/state.json").read_text())
        first, last = state["curve"]
        assert last["loss"] < first["loss"]
        assert f"{last['mAP']:.4f}" in told
    for picture in ("curves.png", "ssd7.png", "qssd7.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(supervised, "train_epoch", None)  # nothing is left to train
    assert example.main(drawn) == 0
    assert example.main([*drawn, "--images", "80"]) == 1
    assert "another run" in capsys.readouterr().err


def write_voc(folder, drawn: Shapes) -> None:
    """Write drawn images as a folder of Pascal VOC's layout."""
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    names = [f"{place:06}" for place in range(len(drawn))]
    for split in ("trainval", "test"):
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names))
    kinds = ("aeroplane", "boat", "cat", "person")
    for place, name in enumerate(names):
        each = drawn[place]
        Image.fromarray(each.image.transpose(1, 2, 0)).save(folder / f"JPEGImages/{name}.png")
        boxes = np.round(each.boxes * drawn.side).astype(int) + np.array([1, 1, 0, 0])
        objects = "".join(
            f"<object><name>{kinds[label]}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in zip(each.labels, boxes, strict=True)
        )
        (folder / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")


def test_it_reads_folders_of_vocs_layout(example, tmp_path, capsys):
    write_voc(tmp_path / "voc", Shapes(6, side=48))
    where = ("--data", str(tmp_path / "voc"), "--model", "qssd7")
    assert example.main(options(tmp_path / "out", *where)) == 0
    assert "qssd7" in capsys.readouterr().out
    (tmp_path / "voc/Annotations/000003.xml").write_text("<!DOCTYPE a><annotation/>")
    assert example.main(options(tmp_path / "other", *where)) == 1
    assert "000003.xml" in capsys.readouterr().err
