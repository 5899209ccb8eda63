"""Reads a line of text with a model that nobody here made, before and after `qcompile export`.

The model is rapidocr's PP-OCRv6 recogniser, 18,710 characters wide, from its PyPI wheel. rapidocr
itself resizes the image, runs the session and decodes; only the session is another one.

    python examples/ocr_head.py ["some text"]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import rapidocr
from PIL import Image, ImageDraw, ImageFont

import qcompile

TEXT = "The quick brown fox, 18710 classes & (1 line)!"
MODEL = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_rec_small.onnx"


def render(text: str) -> np.ndarray:
    """Draw one line in black on white, [height, width, 3]."""
    font = ImageFont.load_default(size=40)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    image = Image.new("RGB", (right - left + 40, bottom - top + 24), "white")
    ImageDraw.Draw(image).text((20 - left, 12 - top), text, fill="black", font=font)
    return np.asarray(image)


class Reader:
    """rapidocr's recogniser over any onnxruntime session of its model."""

    def __init__(self) -> None:
        self.engine = rapidocr.RapidOCR(params={"Global.log_level": "error"})
        self._text(render("."))  # the first call makes the recogniser

    def read(self, image: np.ndarray, model: Path, *, plugin: bool) -> str:
        options = qcompile.session_options() if plugin else onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.engine.text_rec.session.session = onnxruntime.InferenceSession(str(model), options)
        return self._text(image)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Return what rapidocr feeds its model, float [1, 3, 48, width]."""
        height, width = image.shape[:2]
        return self.engine.text_rec.resize_norm_img(image, width / height)[np.newaxis]

    def _text(self, image: np.ndarray) -> str:
        return self.engine(image, use_det=False, use_cls=False, use_rec=True).txts[0]


def main(text: str = TEXT) -> None:
    image, reader = render(text), Reader()
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "recogniser.qcompile.onnx"
        # Verified and timed on real pixels: how fast a softmax is depends on how sure it is.
        result = qcompile.export_onnx(MODEL, exported, inputs={"x": reader.pixels(image)})
        before = reader.read(image, MODEL, plugin=False)
        after = reader.read(image, exported, plugin=True)
        without = reader.read(image, exported, plugin=False)
    print(result.report.summary())
    print(f"rendered                 {text}")
    print(f"read before              {before}")
    print(f"read after, plugin       {after}")
    print(f"read after, no plugin    {without}")
    for part, (old, new) in result.latency.items():
        print(f"latency of the {part:<9} {old:8.3f} → {new:8.3f} ms, {old / new:.2f} times as fast")
    if not before == after == without:
        sys.exit("the text changed")


if __name__ == "__main__":
    main(*sys.argv[1:2])
