"""The same mistake in each of the four formats: an error names file and row, or it is mended."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from qcompile.data import read_dataset
from qcompile.errors import DataError

KINDS = ("xmc", "split", "libsvm", "npz")
SHAPE = 3, 5, 4  # examples, features, labels
GOOD = [({2: "0.5", 0: "1"}, [0, 1]), ({1: "2", 4: "1"}, [2]), ({3: "1"}, [3])]


def write(folder: Path, kind: str, examples, shape=SHAPE):
    """Write examples as they are, right or wrong; return what to read and the files by content."""
    rows, features, labels = shape
    given = [" ".join(f"{i}:{v}" for i, v in entries) for entries, _ in listed(examples)]
    right = [",".join(map(str, y)) for _, y in examples]
    if kind == "npz":
        for name, width in (("X.npz", features), ("Y.npz", labels)):
            pairs = [x if name == "X.npz" else [(i, 1) for i in y] for x, y in listed(examples)]
            archive(folder / name, pairs, (rows, width))
        return {"path": folder / "X.npz"}, folder / "X.npz", folder / "Y.npz"
    if kind == "split":
        ones = [" ".join(f"{i}:1" for i in y) for _, y in examples]
        for name, lines, width in (("a_X_Xf.txt", given, features), ("a_X_Y.txt", ones, labels)):
            (folder / name).write_text("\n".join([f"{rows} {width}", *lines]) + "\n")
        return {"path": folder / "a_X_Xf.txt"}, folder / "a_X_Xf.txt", folder / "a_X_Y.txt"
    lines = [f"{y} {x}" for x, y in zip(given, right, strict=True)]
    if kind == "xmc":
        lines.insert(0, f"{rows} {features} {labels}")
    path = folder / "data.txt"
    path.write_text("\n".join(lines) + "\n")
    named = {"num_features": features, "num_labels": labels} if kind == "libsvm" else {}
    return {"path": path, "format": kind, **named}, path, path


def listed(examples):
    return [(list(x.items()) if isinstance(x, dict) else x, labels) for x, labels in examples]


def archive(path, parts, shape):
    entries = [pair for part in parts for pair in part]
    np.savez(
        path,
        format=np.array(b"csr"),
        shape=np.array(shape),
        indptr=np.cumsum([0, *map(len, parts)]),
        indices=np.array([i for i, _ in entries], np.int64),
        data=np.array([float(v) for _, v in entries]),
    )


def row(kind: str) -> str:
    """How an error names the second example."""
    return {"libsvm": "line 2", "npz": r"row 1 \(from 0\)"}.get(kind, "line 3")


@pytest.mark.parametrize("kind", KINDS)
def test_good_rows_are_read(kind, tmp_path):
    arguments, *_ = write(tmp_path, kind, GOOD)
    dataset = read_dataset(**arguments)
    assert (len(dataset), dataset.num_features, dataset.num_labels) == SHAPE
    assert dataset.features.toarray()[0].tolist() == [1, 0, 0.5, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", [4, -1, 2**40])
def test_a_label_out_of_range(kind, label, tmp_path):
    examples = [GOOD[0], (GOOD[1][0], [label]), GOOD[2]]
    arguments, _, wrong = write(tmp_path, kind, examples)
    with pytest.raises(DataError, match=row(kind)) as raised:
        read_dataset(**arguments)
    assert str(wrong) in str(raised.value)
    if kind == "split":
        assert "has an index out of range: expected 0 to 3" in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feature", [5, -1, 2**40])
def test_a_feature_out_of_range(kind, feature, tmp_path):
    arguments, wrong, _ = write(tmp_path, kind, [GOOD[0], ({feature: "1"}, [2]), GOOD[2]])
    if kind == "libsvm" and feature == 5:  # where indices may begin with 1
        with pytest.raises(DataError, match="num_features is 5, but the file has 6"):
            read_dataset(**arguments)
        return
    with pytest.raises(DataError, match=row(kind)) as raised:
        read_dataset(**arguments)
    assert str(wrong) in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["nan", "inf", "-1e39"])
def test_a_value_that_is_no_number(kind, value, tmp_path):
    arguments, wrong, _ = write(tmp_path, kind, [GOOD[0], ({1: value}, [2]), GOOD[2]])
    with pytest.raises(DataError, match=row(kind)) as raised:
        read_dataset(**arguments)
    assert str(wrong) in str(raised.value)


@pytest.mark.parametrize("kind", ["xmc", "split", "npz"])
@pytest.mark.parametrize("rows", [2, 4])
def test_a_header_that_lies_about_the_rows(kind, rows, tmp_path):
    arguments, path, _ = write(tmp_path, kind, GOOD, (rows, *SHAPE[1:]))
    with pytest.raises(DataError, match=str(rows)) as raised:
        read_dataset(**arguments)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_unsorted_and_repeated_features_are_summed_and_counted(kind, tmp_path):
    messy = [([(2, "0.25"), (0, "1"), (2, "0.25")], [1, 0]), *GOOD[1:]]
    arguments, *_ = write(tmp_path, kind, messy)
    dataset = read_dataset(**arguments)
    assert dataset.report["merged"] == 1
    assert dataset.features.toarray()[0].tolist() == [1, 0, 0.5, 0, 0]
    assert dataset.features[0].indices.tolist() == [0, 2]
    assert dataset.labels[0].indices.tolist() == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_rows_are_kept_and_counted(kind, tmp_path):
    arguments, *_ = write(tmp_path, kind, [GOOD[0], ({}, [2]), ({3: "1"}, [])])
    dataset = read_dataset(**arguments)
    assert (dataset.report["empty_rows"], dataset.report["unlabelled_rows"]) == (1, 1)
    assert dataset.labelled_rows.tolist() == [0, 1]
    assert dataset.batch([1, 0]).features.toarray().tolist() == [[0] * 5, [1, 0, 0.5, 0, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_an_error_or_a_warning(kind, tmp_path):
    arguments, path, _ = write(tmp_path, kind, GOOD)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37 if kind == "npz" else 1):
        part = whole[:length]
        if kind == "libsvm" and part.endswith(b"\n"):
            continue  # whole lines, which nothing in the format counts
        path.write_bytes(part)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                read_dataset(**arguments)
            except DataError as error:
                assert str(path) in str(error)
                continue
        assert any("no line break" in str(warning.message) for warning in warned), part
