"""Files that are wrong: every error names the file, the line and what to do."""

import io
import zipfile

import numpy as np
import pytest
from scipy import sparse

from qcompile.data import read_dataset
from qcompile.errors import DataError

XMC = "2 10 6\n1,2 3:4 5:6\n0 1:1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("2 10\n", "labels is not beside it"),
        ("2 10 6\n", "line 2: the file ends after 0 rows, the header .line 1. says 2"),
        ("2 10 6\n1 2:3\n", "line 3: the file ends after 1 rows"),
        (XMC + "4 2:1\n", "line 4: the header .line 1. says 2 rows, here is another"),
        (XMC + "\n\n4 2:1\n", "line 6: the header .line 1. says 2 rows, here is another"),
        ("0 10 6\n", "holds no example"),
        ("2 5 6\n1,2 3:4 5:6\n0 1:1\n", "line 2: '5:6' has a feature index out of range.*0 to 4"),
        ("2 10 2\n1,2 3:4 5:6\n0 1:1\n", "line 2: '1,2' has a label out of range.*0 to 1"),
        ("2 0 6\n1 3:4\n0\n", "line 2: '3:4' .* expected none"),
        ("2 10 9999999999\n", "line 1: 9999999999 labels"),
        ("2 99999999999999999999999 3\n", "line 1: expected a header"),
        ("1 10 6\n1,x 3:4\n", "line 2: '1,x' has no whole number as its label"),
        ("1 10 6\n-1 3:4\n", "line 2: '-1' has a label out of range"),
        ("1 10 6\n1.0 3:4\n", "line 2: '1.0' has no whole number"),
        ("1 10 6\n1 3:nan\n", "line 2: '3:nan' has a value that is not finite"),
        ("1 10 6\n1 3:-inf\n", "not finite"),
        ("1 10 6\n1 3:1e39\n", "float32"),
        ("1 10 6\n1 3:3e38 3:3e38\n", "line 2: '3' .* sum"),
        ("1 10 6\n1 -3:1\n", "line 2: '-3:1'"),
        ("1 10 6\n1 3:1,5\n", "line 2: '3:1,5' has no number"),
        ("1 10 6\n1 3\n", "line 2: '3' is not index:value"),
        ("1 10 6\n1 3:\n", "line 2: '3:' has no number"),
        ("1 10 6\n1 :3\n", "line 2: ':3' has no whole number"),
        ("2 10 6\n1 3:4\n2 3:", "line 3: '3:' .* The file ends there: is it cut"),
        ("1 10 6\n1 \u00e9:1\n", "line 2: .*xc3"),
        ("label feature\n", "cannot tell the format"),
        ("#\n#\n", "cannot tell the format"),
    ],
)
def test_xmc(text, message, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(path)
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "cache").glob("dataset-*/"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0:1\n2 99999999999:1\n", "line 2: '99999999999:1'"),
        ("1 0:1\n2 2147483647:1\n", "line 2: '2147483647:1'"),
        ("1 1:2\n# x\n\n1 qid:3 1:2\n", "line 4: 'qid:3'"),
        ("+1 1:2\n", r"line 1: '\+1'"),
    ],
)
def test_libsvm(text, message, tmp_path):
    path = tmp_path / "data.svm"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_dataset(path)


def test_libsvm_of_base_one_has_no_zero(tmp_path):
    path = tmp_path / "data.svm"
    path.write_text("1 1:1\n1 0:2\n")
    with pytest.raises(DataError, match=r"line 2: '0:2' .* expected 1 to"):
        read_dataset(path, index_base=1)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        ("2 3\n0:1\n2:1\n", "1 4\n1:1\n", "has 2 rows, .* has 1"),
        ("2 3\n0:1\n3:1\n", "2 4\n1:1\n1:1\n", "Xf.txt: line 3: '3:1'"),
        ("2 3\n0:1\n2:1\n", "2 4\n1:1\n4:1\n", "Y.txt: line 3: '4:1'"),
        ("2 3\n0:1\n2:1\n", "2 4 5\n1:1\n4:1\n", "Y.txt: line 1: expected a header of 2"),
        ("2 3\n0:1\n1,2 2:1\n", "2 4\n1:1\n1:1\n", "Xf.txt: line 3: '1,2' is not index:value"),
    ],
)
def test_split(features, labels, message, tmp_path):
    (tmp_path / "trn_X_Xf.txt").write_text(features)
    (tmp_path / "trn_X_Y.txt").write_text(labels)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path / "trn_X_Xf.txt")


def test_encodings_and_lines_without_end(monkeypatch, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text(XMC, encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        read_dataset(path)
    monkeypatch.setattr("qcompile.data.text_source._LONGEST_LINE", 1000)
    monkeypatch.setattr("qcompile.data.text_source._BLOCK", 400)
    path.write_text("1 10 6\n1 " + "3:4 " * 1000)
    with pytest.raises(DataError, match="line 2: no line break"):
        read_dataset(path)


def test_paths_and_options(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text(XMC)
    with pytest.raises(DataError, match="no such file"):
        read_dataset(tmp_path / "none.txt")
    with pytest.raises(DataError, match="is a folder"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        read_dataset("/dev/null")
    with pytest.raises(DataError, match="format 'csv', expected one of"):
        read_dataset(path, format="csv")
    with pytest.raises(DataError, match="leave out labels"):
        read_dataset(path, labels=path)
    with pytest.raises(DataError, match="expected a header of 2 numbers"):
        read_dataset(path, format="split", labels=path)
    archive = tmp_path / "data.npz"
    archive.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read_dataset(archive, labels=path)
    with pytest.raises(DataError, match="begin with 0"):
        read_dataset(path, index_base=1)
    for name in ("num_features", "num_labels", "index_base"):
        for wrong in (-1, 2**31, 1.5, True, "3"):
            with pytest.raises(DataError, match=f"{name} is"):
                read_dataset(path, format="libsvm", **{name: wrong})


ARRAYS = {
    "format": np.array(b"csr"),
    "shape": np.array([2, 4]),
    "indptr": np.array([0, 2, 3], np.int32),
    "indices": np.array([1, 3, 0], np.int32),
    "data": np.array([1, 2, 3], np.float32),
}


def header_of(shape, dtype="<f4"):
    """An array file that promises more than it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + bytes(8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array(b"csc")}, "tocsr"),
        ({"format": np.array([1])}, "'format'"),
        ({"shape": np.array([2, -4])}, "shape"),
        ({"shape": np.array([2, 2**40])}, "shape"),
        ({"shape": np.array([2.0, 4.0])}, "'shape'"),
        ({"shape": np.array([3, 4])}, "3 rows need 4 row pointers, found 3"),
        ({"indptr": np.array([0, 3, 2])}, "row pointers"),
        ({"indptr": np.array([1, 2, 3])}, "begin with 0"),
        ({"indptr": np.array([0, 2, 9])}, "row pointers"),
        ({"indptr": np.array([0, 2, 2])}, "end at 2, there are 3"),
        ({"indptr": np.array([0, -1, 3])}, "row pointers"),
        ({"indptr": np.array([0.0, 2, 3])}, "'indptr'"),
        ({"indices": np.array([1, 4, 0])}, "row 0 .from 0. has column 4 of 4"),
        ({"indices": np.array([1, 3, -1])}, "row 1 .from 0. has column -1 of 4"),
        ({"indices": np.array([1, 3, 2**63], np.uint64)}, "column -"),
        ({"indices": np.array([1, 3])}, "2 indices for 3 values"),
        ({"data": np.array([1, np.nan, 3])}, "row 0 .from 0. has the value nan"),
        ({"data": np.array([1, 2, 1e39])}, "row 1 .from 0. has the value 1e.39"),
        ({"data": np.array([1, 2, 3j])}, "'data'"),
        ({"data": np.array([1, None, 3])}, "'data'"),
        ({"data": header_of((3,))}, "'data' is cut"),
        ({"data": header_of((-3,))}, "'data'"),
        ({"data": b"no array"}, "'data' is damaged"),
        ({"data": None}, "no array 'data'"),
        ({"shape": header_of((10**15,), "<i8")}, "'shape' is too large"),
    ],
)
def test_npz(changes, message, tmp_path):
    sparse.save_npz(tmp_path / "Y.npz", sparse.csr_matrix(np.eye(2)))
    with zipfile.ZipFile(tmp_path / "X.npz", "w") as archive:
        for name, content in (ARRAYS | changes).items():
            if isinstance(content, np.ndarray):
                buffer = io.BytesIO()
                np.save(buffer, content, allow_pickle=True)
                content = buffer.getvalue()
            if content is not None:
                archive.writestr(f"{name}.npy", content)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path / "X.npz")
    assert "X.npz: " in str(caught.value)


def test_npz_of_a_later_zip_version(tmp_path):
    matrix = sparse.csr_matrix(np.eye(2))
    for name in ("X.npz", "Y.npz"):
        sparse.save_npz(tmp_path / name, matrix)
    content = bytearray((tmp_path / "X.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 255
    (tmp_path / "X.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"X\.npz: not a readable \.npz"):
        read_dataset(tmp_path / "X.npz")


def test_npz_with_a_wrong_byte(tmp_path):
    matrix = sparse.csr_matrix(np.eye(2, dtype=np.float32))
    for name in ("X.npz", "Y.npz"):
        sparse.save_npz(tmp_path / name, matrix, compressed=False)
    content = (tmp_path / "X.npz").read_bytes()
    assert content.count(matrix.data.tobytes()) == 1
    (tmp_path / "X.npz").write_bytes(content.replace(matrix.data.tobytes(), b"\1" * 8))
    with pytest.raises(DataError, match=r"X\.npz: the array 'data' is damaged"):
        read_dataset(tmp_path / "X.npz")


def test_npz_whose_sums_are_too_large(tmp_path):
    matrix = sparse.csr_matrix((np.array([3e38, 3e38], np.float32), [1, 1], [0, 0, 2]), (2, 2))
    sparse.save_npz(tmp_path / "X.npz", matrix)
    sparse.save_npz(tmp_path / "Y.npz", sparse.csr_matrix(np.eye(2)))
    with pytest.raises(DataError, match=r"X\.npz: rows 0 to 1: the sum"):
        read_dataset(tmp_path / "X.npz")


def test_npz_values_may_have_any_type_and_rows_any_order(tmp_path):
    sparse.save_npz(tmp_path / "Y.npz", sparse.csr_matrix(np.eye(2, dtype=np.uint8)))
    big = {"indices": np.array([3, 1, 0], ">i8"), "data": np.array([1, 2, 3], ">f8")}
    with zipfile.ZipFile(tmp_path / "X.npz", "w") as archive:
        for name, content in (ARRAYS | big).items():
            buffer = io.BytesIO()
            np.save(buffer, content)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    dataset = read_dataset(tmp_path / "X.npz")
    assert dataset.features.toarray().tolist() == [[0, 2, 0, 1], [3, 0, 0, 0]]
    assert dataset.features.indices.tolist() == [1, 3, 0]
    assert dataset.labels.indices.tolist() == [0, 1]


def test_npz_in_many_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr("qcompile.data.npz_source._BLOCK_ROWS", 5)
    monkeypatch.setattr("qcompile.data.npz_source._BLOCK_ENTRIES", 7)
    matrix = sparse.random(23, 9, density=0.4, format="csr", dtype=np.float32, random_state=1)
    sparse.save_npz(tmp_path / "X_a.npz", matrix, compressed=False)
    sparse.save_npz(tmp_path / "Y_a.npz", matrix)
    dataset = read_dataset(tmp_path / "X_a.npz")
    assert np.array_equal(dataset.features.toarray(), matrix.toarray())
    assert np.array_equal(dataset.labels.toarray(), matrix.toarray() != 0)
    monkeypatch.setattr("qcompile.data.npz_source._LONGEST_ROW", 3)
    with pytest.raises(DataError, match="entries, at most"):
        read_dataset(tmp_path / "X_a.npz", num_labels=9)
