"""Pictures: what they show, and files that are whole or not there."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from qcompile.analysis.pictures import Mark, draw_curves, draw_images, new_figure, save_figure
from qcompile.errors import ConfigurationError


def test_images_have_their_colours_and_marks(tmp_path):
    images = torch.stack([torch.full((3, 9, 9), value) for value in (-1.0, 0.0, 1.0)])
    marks = [[], [], [Mark((0.2, 0.2, 0.8, 0.8), "box", "red")]]
    path = draw_images(
        images, tmp_path / "grid.png", titles=["a", "b", "c"], marks=marks, columns=3
    )
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    shown = set(map(tuple, pixels.tolist()))
    assert {(0, 0, 0), (255, 255, 255)} <= shown
    assert any(abs(r - 127) < 3 and r == g == b for r, g, b in shown)
    assert ((pixels[:, 0] > 250) & (pixels[:, 1:] < 5).all(1)).sum() > 20
    assert [found.name for found in tmp_path.iterdir()] == ["grid.png"]


def test_curves_of_runs_of_different_lengths(tmp_path):
    curves = {"a": [{"loss": 1.0}, {"loss": 0.5}], "b": [{"loss": 2.0}]}
    assert draw_curves(curves, ["loss"], tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be written"):
        save_figure(new_figure(1, 1), tmp_path / "missing" / "a.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        save_figure(new_figure(1, 1), tmp_path / "taken.png")
    assert [found.name for found in tmp_path.iterdir()] == ["taken.png"]


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigurationError, match=r"torch-qcompile\[analysis\]"):
        draw_curves({}, ["loss"], tmp_path / "c.png")
