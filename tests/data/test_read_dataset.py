"""Reading each format gives back what was written, and the cache follows the files."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_svmlight_file

from qcompile.data import SparseDataset, cache, read_dataset, reader, write_xmc
from qcompile.errors import DataError, QCompileWarning

KINDS = ("xmc", "split", "libsvm", "npz")
DATA = [({3: 1.5, 0: -2.0}, [4, 1]), ({}, [0]), ({9: 0.25}, []), ({1: 1.0}, [5])]


def same(a, b):
    for x, y in ((a.features, b.features), (a.labels, b.labels)):
        assert x.shape == y.shape
        assert np.array_equal(x.indptr, y.indptr)
        assert np.array_equal(x.indices, y.indices)
        assert np.array_equal(x.data, y.data)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_read_is_what_was_written(kind, data, examples, files, make):
    written = data.draw(examples)
    if kind == "libsvm":  # where blank lines are no examples
        written = [(f, y) for f, y in written if f or y] or [({0: 1.0}, [2])]
    with tempfile.TemporaryDirectory() as folder:
        arguments = files(Path(folder), kind, written)
        found = read_dataset(**arguments, cache=folder)
        same(found, make(*zip(*written, strict=True)))
        same(read_dataset(**arguments, cache=folder), found)


@pytest.mark.parametrize("kind", KINDS)
def test_formats_are_detected_and_reported(kind, files, make, tmp_path):
    arguments = files(tmp_path, kind, DATA)
    arguments.pop("format", None)
    dataset = read_dataset(**arguments)
    same(dataset, make(*zip(*DATA, strict=True)))
    assert dataset.report == {
        "format": kind,
        "unlabelled_rows": 1,
        "empty_rows": 1,
        "highest_feature": 9,
        "highest_label": 5,
        "merged": 0,
        "index_base": int(kind == "libsvm"),
        "ends_in_newline": True,
    }
    assert dataset.labelled_rows.tolist() == [0, 1, 3]


@pytest.mark.parametrize("pack", [gzip, bz2, lzma])
def test_compressed_text(pack, files, make, tmp_path):
    path = files(tmp_path, "xmc", DATA)["path"]
    packed = tmp_path / "whatever"
    packed.write_bytes(pack.compress(path.read_bytes()))
    same(read_dataset(packed), make(*zip(*DATA, strict=True)))
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged or cut"):
        read_dataset(packed)


def test_mixed_pairs_and_named_labels(files, make, tmp_path):
    files(tmp_path, "npz", DATA)
    files(tmp_path, "split", DATA)
    found = read_dataset(tmp_path / "X.trn.npz", labels=tmp_path / "trn_X_Y.txt")
    same(found, make(*zip(*DATA, strict=True)))


def test_spellings_that_are_tolerated(make, tmp_path):
    path = tmp_path / "data.txt"
    path.write_bytes(b"\xef\xbb\xbf3 10 6\r\n1,4,1 3:+1 0:2e0\t3:.5 \r\n5\r\n 7:-1\r\n\r\n\n")
    found = read_dataset(path)
    same(found, make([{0: 2, 3: 1.5}, {}, {7: -1}], [[1, 4], [5], []]))
    assert found.report["merged"] == 2


def test_split_entries_of_zero_are_no_labels(tmp_path):
    (tmp_path / "a_X_Xf.txt").write_text("2 3\n0:1\n2:1\n")
    (tmp_path / "a_X_Y.txt").write_text("2 4\n3:1 1:0\n2:0\n")
    assert read_dataset(tmp_path / "a_X_Xf.txt").labels.toarray().tolist() == [
        [False, False, False, True],
        [False] * 4,
    ]


def test_libsvm_begins_with_zero_or_one(tmp_path):
    path = tmp_path / "data.svm"
    path.write_text("1 1:2 3:4 # why\n\n0,2 2:1\n")
    one, zero = read_dataset(path), read_dataset(path, index_base=0)
    assert one.features.toarray().tolist() == [[2, 0, 4], [0, 1, 0]]
    assert (one.num_labels, one.report["index_base"], zero.report["index_base"]) == (3, 1, 0)
    assert np.array_equal(zero.features.toarray()[:, 1:], one.features.toarray())
    reference, labels = load_svmlight_file(str(path), multilabel=True)
    assert np.array_equal(reference.toarray(), one.features.toarray())
    assert [one.labels[i].indices.tolist() for i in (0, 1)] == [list(map(int, y)) for y in labels]
    wider = read_dataset(path, num_features=3, num_labels=9)
    assert (wider.num_features, wider.num_labels) == (3, 9)
    with pytest.raises(DataError, match="line 1: '3:4' has a feature index out of range"):
        read_dataset(path, num_features=3, index_base=0)
    path.write_text("1 0:2 3:4\n")
    with pytest.raises(DataError, match=r"is 3, but the file has 4; if .* index_base"):
        read_dataset(path, num_features=3)


def test_widths_follow_the_training_file(files, tmp_path):
    path = files(tmp_path, "xmc", DATA)["path"]
    wider = read_dataset(path, num_features=20, num_labels=7)
    assert (wider.num_features, wider.num_labels) == (20, 7)
    with pytest.raises(DataError, match="num_features is 9, but the file has 10"):
        read_dataset(path, num_features=9)


def test_a_missing_last_line_break_is_a_warning(files, make, tmp_path):
    path = files(tmp_path, "xmc", DATA)["path"]
    path.write_text(path.read_text().rstrip("\n"))
    for _ in range(2):  # from the file and from the cache
        with pytest.warns(QCompileWarning, match="line break"):
            same(read_dataset(path), make(*zip(*DATA, strict=True)))


def test_blocks_need_not_end_with_lines(monkeypatch, files, make, tmp_path):
    monkeypatch.setattr("qcompile.data.text_source._BLOCK", 7)
    for kind in ("xmc", "split", "libsvm"):
        same(read_dataset(**files(tmp_path, kind, DATA)), make(*zip(*DATA, strict=True)))
    path = tmp_path / "bad.txt"
    path.write_text("9 10 6\n" + "1 2:3\n" * 8 + "1 2:x\n")
    with pytest.raises(DataError, match=r"bad\.txt: line 10: '2:x'"):
        read_dataset(path)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_written_files_are_read_back_exactly(data, examples, make):
    written = make(*zip(*data.draw(examples), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        write_xmc(Path(folder) / "data.txt", written)
        same(read_dataset(Path(folder) / "data.txt", cache=folder), written)
        assert not list(Path(folder).glob("*.tmp"))


def counted(monkeypatch):
    calls = []
    convert = reader.convert

    def counting(*arguments):
        calls.append(arguments)
        return convert(*arguments)

    monkeypatch.setattr(reader, "convert", counting)
    return calls


def test_the_cache_is_used_until_the_file_changes(monkeypatch, files, make, tmp_path):
    calls = counted(monkeypatch)
    path = files(tmp_path, "xmc", DATA)["path"]
    first = read_dataset(path)
    read_dataset(path)
    assert len(calls) == 1
    read_dataset(path, num_labels=9)
    assert len(calls) == 2
    text = path.read_text()
    path.write_text(text.replace("0.25", "0.75"))
    os.utime(path, ns=(1, 1))
    assert read_dataset(path).features[2, 9] == 0.75
    assert len(calls) == 3
    same(first, make(*zip(*DATA, strict=True)))  # what was mapped before stays as it was
    assert len(list((tmp_path / "cache").glob("dataset-*/"))) == 2


def damage_record(folder):
    (folder / "record.json").write_text("{")


def damage_values(folder):
    path = folder / "features.values.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")


def damage_layout(folder):
    """Break a row pointer and adapt the checksum, as an evil neighbour might."""
    path = folder / "features.indptr.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"\xff\xff\xff\x7f")
    record = json.loads((folder / "record.json").read_text())
    edit_record(folder, files=record["files"] | {path.name: cache._checksum(path)})


def edit_record(folder, **changes):
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | changes))


@pytest.mark.parametrize(
    "damage",
    [
        damage_record,
        damage_values,
        damage_layout,
        lambda folder: (folder / "labels.indices.npy").unlink(),
        lambda folder: (folder / "features.indices.npy").write_bytes(b""),
        lambda folder: (folder / "record.json").write_text("[]"),
        lambda folder: (folder / "record.json").write_bytes(b"\xff"),
        lambda folder: edit_record(folder, files=[]),
        lambda folder: edit_record(folder, content={"num_features": 10**30, "num_labels": "x"}),
        shutil.rmtree,
    ],
)
def test_a_damaged_cache_is_built_again(damage, monkeypatch, files, make, tmp_path):
    calls = counted(monkeypatch)
    path = files(tmp_path, "xmc", DATA)["path"]
    read_dataset(path)
    (folder,) = (tmp_path / "cache").glob("dataset-*/")
    damage(folder)
    same(read_dataset(path), make(*zip(*DATA, strict=True)))
    same(read_dataset(path), make(*zip(*DATA, strict=True)))
    assert len(calls) == 2


KILLED = """
import os, signal, sys
from qcompile.data import read_dataset, reader
convert = reader.convert
def killed(request, folder):
    convert(request, folder)
    os.kill(os.getpid(), signal.SIGKILL)
reader.convert = killed
read_dataset(sys.argv[1])
"""


def test_a_killed_build_leaves_nothing_for_long(files, make, tmp_path):
    path = files(tmp_path, "xmc", DATA)["path"]
    run = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert run.returncode == -signal.SIGKILL
    folder = tmp_path / "cache"
    assert len(list(folder.glob("*.tmp"))) == 1
    assert not list(folder.glob("*/record.json"))
    same(read_dataset(path), make(*zip(*DATA, strict=True)))
    assert not list(folder.glob("*.tmp"))


def test_of_many_readers_one_builds(monkeypatch, files, tmp_path):
    calls, found = counted(monkeypatch), []
    path = files(tmp_path, "xmc", DATA)["path"]
    threads = [threading.Thread(target=lambda: found.append(read_dataset(path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 6
    for dataset in found:
        same(dataset, found[0])


def test_a_cache_that_cannot_be_written(files, tmp_path):
    path = files(tmp_path, "xmc", DATA)["path"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache cannot be written"):
        read_dataset(path, cache=tmp_path / "file")


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache.default_folder() == tmp_path / "cache"
    monkeypatch.delenv("QCOMPILE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "qcompile"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_folder() == Path.home() / ".cache" / "qcompile"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DataError, match=r"home directory.* cache="):
        cache.default_folder()


def test_a_full_disk_leaves_no_files(make, tmp_path):
    resource = pytest.importorskip("resource")
    rows = 30_000
    dataset = make([{i % 10: 1.0} for i in range(rows)], [[1]] * rows)
    path = tmp_path / "data.txt"
    write_xmc(path, dataset)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cache cannot be written: File too large\. Free"):
            read_dataset(path)
        with pytest.raises(DataError, match="cannot be written: File too large"):
            write_xmc(tmp_path / "copy.txt", dataset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "data.txt"]
    same(read_dataset(path), dataset)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutated_files_raise_nothing_but_data_errors(kind, data, files):
    edits = data.draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
    cut = data.draw(st.integers(0, 40))
    with tempfile.TemporaryDirectory() as folder:
        arguments = files(Path(folder), kind, DATA)
        content = bytearray(arguments["path"].read_bytes())
        for position, byte in edits:
            content[position % len(content)] = byte
        arguments["path"].write_bytes(content[: len(content) - cut])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QCompileWarning)
            try:
                found = read_dataset(**arguments, cache=folder)
            except DataError as error:
                assert folder in str(error)
            else:
                assert isinstance(found, SparseDataset)
                assert np.isfinite(found.features.data).all()
