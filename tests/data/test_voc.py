"""Folders of Pascal VOC's layout, sound and hostile."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qcompile.data.voc import VOC
from qcompile.errors import DataError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
</bndbox></object>"""


def annotation(*objects) -> str:
    written = "".join(OBJECT.format(name=n, box=b, difficult=d) for n, b, d in objects)
    return (
        f"<?xml version='1.0'?><annotation><filename>/etc/passwd</filename>{written}</annotation>"
    )


@pytest.fixture
def folder(tmp_path):
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("000005\n000007  1\n\n")
    for name, size in (("000005", (40, 20)), ("000007", (7, 9))):
        Image.new("RGB", size, (255, 0, 128)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    found = annotation(("dog", (1, 1, 20, 10), 0), ("person", (21.5, 6, 90, 20), 1))
    (tmp_path / "Annotations/000005.xml").write_text(found)
    (tmp_path / "Annotations/000007.xml").write_text(annotation())
    return tmp_path


def test_images_boxes_and_labels(folder):
    found = VOC(folder, side=12)
    assert len(found) == 2
    first = found[0]
    assert first.image.shape == (3, 12, 12)
    assert first.image.dtype == np.uint8
    np.testing.assert_allclose(first.image[:, 5, 5], [255, 0, 128], atol=4)
    # Pixels 1 to 20 of 40 are the left half; what is beyond the image is cut off.
    np.testing.assert_allclose(first.boxes, [[0, 0, 0.5, 0.5], [20.5 / 40, 0.25, 1, 1]])
    assert [found.classes[label] for label in first.labels] == ["dog", "person"]
    assert first.difficult.tolist() == [False, True]


def test_an_image_without_objects(folder):
    empty = VOC(folder)[1]
    assert empty.boxes.shape == (0, 4)
    assert empty.labels.shape == empty.difficult.shape == (0,)
    assert empty.difficult.dtype == bool


def test_classes_of_ones_own(folder):
    assert VOC(folder, classes=("person", "dog"))[0].labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"'dog'\. Did they mean 'dogs'"):
        VOC(folder, classes=("person", "dogs"))[0]


ENTITIES = """<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;">]>
<annotation><object><name>&c;</name></object></annotation>"""
OUTSIDE = """<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>"""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no annotation"),
        (b"<annotation>", "no annotation"),
        (b"\xff\xfe\x00", "no annotation"),
        (ENTITIES.encode(), "document type"),
        (ENTITIES.replace("?>", " encoding='utf-16'?>").encode("utf-16"), "document type"),
        (OUTSIDE.encode(), "document type"),
        (b"<?xml version='1.0' encoding='nonsense'?><annotation/>", "no annotation"),
        (annotation(("cta", (1, 1, 2, 2), 0)).encode(), "Did they mean 'cat'"),
        (annotation(("dog", (5, 1, 4, 2), 0)).encode(), "is no box"),
        (annotation(("dog", (0, 1, 4, 2), 0)).encode(), "is no box"),
        (annotation(("dog", ("nan", 1, 4, 2), 0)).encode(), "is no box"),
        (annotation(("dog", (1, 1, "inf", 2), 0)).encode(), "is no box"),
        (annotation(("dog", ("one", 1, 4, 2), 0)).encode(), "is no box"),
        (b"<annotation><object><name>dog</name></object></annotation>", "is no box"),
        (annotation(("dog", (41, 1, 60, 9), 0)).encode(), "outside its image of 40×20"),
        (annotation(*[("dog", (1, 1, 2, 2), 0)] * 1001).encode(), "1,001 objects"),
        (b" " * ((1 << 20) + 1), "more than 1,048,576 bytes"),
    ],
)
def test_hostile_annotations_are_refused(folder, content, says):
    (folder / "Annotations/000005.xml").write_bytes(content)
    with pytest.raises(DataError, match=says):
        VOC(folder)[0]


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises any size, and which has hardly anything inside."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be decoded"),
        (b"GIF89a" + bytes(40), "cannot be decoded"),
        (png(9, 9), "cannot be decoded"),
        (png(9000, 9000), "too many"),
        (png(60_000, 60_000), "cannot be decoded|too many"),
        (png(0, 5), "cannot be decoded"),
    ],
)
def test_hostile_images_are_refused(folder, content, says):
    (folder / "JPEGImages/000005.png").write_bytes(content)
    with pytest.raises(DataError, match=says):
        VOC(folder)[0]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "a\x00b"])
def test_names_that_lead_elsewhere_are_refused(folder, name):
    (folder / "ImageSets/Main/train.txt").write_text(f"000005\n{name}\n")
    with pytest.raises(DataError, match="expected the name of an image"):
        VOC(folder)


def test_missing_files_are_named(folder):
    with pytest.raises(DataError, match=r"val\.txt: cannot be read"):
        VOC(folder, "val")
    (folder / "Annotations/000005.xml").unlink()
    with pytest.raises(DataError, match=r"000005\.xml: cannot be read"):
        VOC(folder)[0]
    (folder / "JPEGImages/000007.jpg").unlink()
    with pytest.raises(DataError, match=r"000007\.jpg: cannot be read"):
        VOC(folder)[1]
    (folder / "ImageSets/Main/train.txt").write_text("\n \n")
    with pytest.raises(DataError, match="names no images"):
        VOC(folder)
