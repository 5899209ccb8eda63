"""The annotation of one image in the format of Pascal VOC, read without trusting it.

Source: Everingham et al., "The Pascal Visual Object Classes Challenge: development kit", section
on annotation: pixels count from 1 and boxes include their last ones.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np

from qcompile.data.bounded import read_file
from qcompile.errors import DataError

__all__ = ["Objects", "read_annotation"]

_MOST_BYTES = 1 << 20
_MOST_OBJECTS = 1000

Objects = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes float32 [n, 4] in pixels from 0, labels int64 [n], which are difficult bool [n]."""


def read_annotation(path: Path, classes: Sequence[str]) -> Objects:
    """Return the objects of an annotation.

    Args:
        path: the XML file, up to 1 MiB; document types, and so entities, are refused.
        classes: their names; a label is a place among them.

    Raises:
        DataError: the file cannot be read, is no XML, has a document type or more than 1000
            objects, names an unknown class, or has a box without an inside.
    """
    parser = ElementTree.XMLParser(target=_NoDocumentType())
    try:
        parser.feed(read_file(path, _MOST_BYTES))
        root = parser.close()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path}: is no annotation of Pascal VOC: {error}.") from error
    found = root.findall("object")
    if len(found) > _MOST_OBJECTS:
        raise DataError(f"{path}: has {len(found):,} objects, more than {_MOST_OBJECTS:,}.")
    boxes = np.array([_box(path, each) for each in found], np.float32).reshape(-1, 4)
    labels = np.array([_label(path, each, classes) for each in found], np.int64)
    difficult = np.array([(each.findtext("difficult") or "").strip() == "1" for each in found])
    return boxes, labels, difficult.astype(bool)


class _NoDocumentType(ElementTree.TreeBuilder):
    def doctype(self, name: str, public: str | None, system: str | None) -> NoReturn:
        """Stop before anything is declared: entities can make a small file a large one."""
        raise ValueError("it has a document type, which no annotation needs")


def _box(path: Path, element: ElementTree.Element) -> tuple[float, float, float, float]:
    names = ("xmin", "ymin", "xmax", "ymax")
    texts = [element.findtext(f"bndbox/{name}") or "" for name in names]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError:
        left = top = right = bottom = math.nan
    if not (0 < left <= right < 1e6 and 0 < top <= bottom < 1e6):
        raise DataError(
            f"{path}: {dict(zip(names, (t[:20] for t in texts), strict=True))} is no box."
        )
    return left - 1, top - 1, right, bottom


def _label(path: Path, element: ElementTree.Element, classes: Sequence[str]) -> int:
    name = (element.findtext("name") or "").strip()[:60]
    if name in classes:
        return classes.index(name)
    near = difflib.get_close_matches(name, classes, n=1)
    hint = f" Did they mean {near[0]!r}?" if near else ""
    raise DataError(f"{path}: names the class {name!r}.{hint} Known: {', '.join(classes)}.")
