"""What the tests of readers share: random datasets and their files in every format."""

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import sparse

from qcompile.data import SparseDataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))


def csr(rows, columns, dtype=np.float32):
    """Make a matrix of rows {column: value}."""
    indptr = np.cumsum([0] + [len(row) for row in rows])
    indices = np.array([c for row in rows for c in row], dtype=np.int64)
    values = np.array([v for row in rows for v in row.values()], dtype=dtype)
    return sparse.csr_matrix((values, indices, indptr), (len(rows), columns))


@pytest.fixture(scope="session")
def make():
    """Make a dataset of feature rows {index: value} and lists of labels."""

    def build(features, labels, num_features=10, num_labels=6):
        targets = [dict.fromkeys(found, 1) for found in labels]
        return SparseDataset(csr(features, num_features), csr(targets, num_labels))

    return build


VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROW = st.tuples(st.dictionaries(st.integers(0, 9), VALUES, max_size=5), st.sets(st.integers(0, 5)))


@pytest.fixture(scope="session")
def examples():
    """A strategy of lists of (features, labels)."""
    return st.lists(ROW, min_size=1, max_size=6)


def line(features, labels, base=0):
    pairs = " ".join(f"{index + base}:{value!r}" for index, value in features.items())
    return f"{','.join(map(str, labels))} {pairs}\n"


@pytest.fixture(scope="session")
def files():
    """Write (features, labels) in one format; returns the arguments of read_dataset."""

    def write(folder, kind, data):
        features, labels = zip(*data, strict=True)
        if kind == "xmc":
            path = folder / "data.txt"
            path.write_text(f"{len(data)} 10 6\n" + "".join(line(f, y) for f, y in data))
            return {"path": path}
        if kind == "libsvm":
            path = folder / "data.svm"
            path.write_text("# by hand\n" + "".join(line(f, y, base=1) for f, y in data))
            return {"path": path, "format": kind, "index_base": 1, **WIDTHS}
        targets = [dict.fromkeys(found, 1.0) for found in labels]
        if kind == "split":
            for name, rows, width in (("trn_X_Xf", features, 10), ("trn_X_Y", targets, 6)):
                text = "".join(line(row, ()).lstrip(" ") for row in rows)
                (folder / f"{name}.txt").write_text(f"{len(data)} {width}\n{text}")
            return {"path": folder / "trn_X_Xf.txt"}
        sparse.save_npz(folder / "X.trn.npz", csr(features, 10))
        sparse.save_npz(folder / "Y.trn.npz", csr(targets, 6, bool))
        return {"path": folder / "X.trn.npz"}

    return write


WIDTHS = {"num_features": 10, "num_labels": 6}
