"""Image sets in files that are sound and in files that are not."""

import gzip

import numpy as np
import pytest

from qcompile.data.images import load, read_idx
from qcompile.errors import DataError


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(0)
    for which, count in (("train", 7), ("t10k", 4)):
        images = rng.integers(256, size=(count, 5, 6), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        (tmp_path / f"{which}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{which}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_the_digits_need_nothing():
    found = load("digits")
    assert found.train_images.shape[1:] == (1, 8, 8)
    assert len(found.train_images) + len(found.test_images) == 1797
    assert found.train_images.max() == found.most == 16
    assert set(found.test_labels) == set(range(10))


def test_idx_files_zipped_or_not(fashion):
    found = load(fashion)
    assert found.train_images.shape == (7, 1, 5, 6)
    assert found.test_images.shape == (4, 1, 5, 6)
    assert found.train_labels.tolist() == list(range(7))
    assert found.classes == 7
    stored = gzip.decompress((fashion / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    assert found.train_images.tobytes() == stored


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x09\x01" + bytes(4),
        b"\0\0\x08\x03" + b"\xff" * 12,
        idx(np.zeros((3, 4), np.uint8))[:-1],
        idx(np.zeros((3, 4), np.uint8)) + b"\0",
        gzip.compress(idx(np.zeros(9, np.uint8)))[:-9],
        b"\x1f\x8b" + bytes(30),
    ],
)
def test_broken_idx_files_are_refused(tmp_path, content):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(DataError, match="broken"):
        read_idx(path)


def test_sets_that_do_not_fit_together_are_refused(fashion):
    (fashion / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match="t10k has images"):
        load(fashion)
    (fashion / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is missing"):
        load(fashion)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"idx3-ubyte.*CIFAR-10"):
        load(tmp_path)
