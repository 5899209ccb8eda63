"""CIFAR's files, binary and pickled, sound and hostile."""

import os
import pickle
import pickletools
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from qcompile.data import pickled_arrays
from qcompile.data.images import load
from qcompile.data.pickled_arrays import read_pickled_arrays
from qcompile.errors import DataError

TEN = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def batch(seed: int, count: int = 3, key: str = "labels", classes: int = 10) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "batch_label": f"batch {seed}",
        "data": rng.integers(256, size=(count, 3072), dtype=np.uint8),
        key: [int(label) for label in rng.integers(classes, size=count)],
        "filenames": [f"{i}.png" for i in range(count)],
    }


def as_python_2(content: bytes) -> bytes:
    """Write the byte strings and texts of a pickle of protocol 3 as Python 2 wrote its strings."""
    out = b""
    places = [at for _, _, at in pickletools.genops(content)] + [len(content)]
    for (operation, argument, at), end in zip(pickletools.genops(content), places[1:], strict=True):
        if operation.name in ("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"):
            text = argument.encode() if isinstance(argument, str) else argument
            out += b"T" + struct.pack("<i", len(text)) + text
        elif operation.name == "GLOBAL":
            out += f"c{argument.replace('_core', 'core').replace(' ', chr(10))}\n".encode()
        else:
            out += content[at:end]
    return out


WRITERS = {
    "Python 2": lambda found: as_python_2(pickle.dumps(found, 3)),
    "protocol 2": lambda found: pickle.dumps(found, 2),
    "protocol 4": lambda found: pickle.dumps(found, 4),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_pickled_cifar_10(tmp_path, write):
    batches = [batch(seed) for seed in range(6)]
    for name, found in zip(TEN, batches, strict=True):
        (tmp_path / name).write_bytes(write(found))
    got = load(tmp_path)
    assert (got.name, got.classes) == ("cifar-10", 10)
    assert got.train_images.shape == (15, 3, 32, 32)
    assert np.array_equal(got.train_images[3:6].reshape(3, -1), batches[1]["data"])
    assert got.test_labels.tolist() == batches[5]["labels"]


def test_what_python_2_wrote_is_what_the_real_unpickler_reads(tmp_path):
    """The stream that the tests above take for Python 2's, read by Python's own unpickler."""
    found = batch(1)
    read = pickle.loads(as_python_2(pickle.dumps(found, 3)), encoding="bytes")
    assert set(read) == {key.encode() for key in found}
    assert np.array_equal(read[b"data"], found["data"])


def test_pickled_cifar_100_has_its_fine_labels(tmp_path):
    for seed, name in enumerate(("train", "test")):
        found = batch(seed, key="fine_labels", classes=100) | {"coarse_labels": [0, 1, 2]}
        (tmp_path / name).write_bytes(pickle.dumps(found, 2))
    got = load(tmp_path)
    assert (got.name, got.classes) == ("cifar-100", 100)
    assert got.train_labels.tolist() == batch(0, key="fine_labels", classes=100)["fine_labels"]


def records(names, labels: int, classes: int, folder) -> np.ndarray:
    found = np.random.default_rng(1).integers(256, size=(4, labels + 3072), dtype=np.uint8)
    found[:, :labels] %= classes
    for name in names:
        (folder / f"{name}.bin").write_bytes(found.tobytes())
    return found


def test_binary_cifar_10(tmp_path):
    found = records(TEN, 1, 10, tmp_path)
    got = load(tmp_path)
    assert got.train_images.shape == (20, 3, 32, 32)
    assert got.test_labels.tolist() == found[:, 0].tolist()
    assert got.test_images[1].tobytes() == found[1, 1:].tobytes()


def test_binary_cifar_100(tmp_path):
    found = records(["train", "test"], 2, 100, tmp_path)
    got = load(tmp_path)
    assert got.test_labels.tolist() == found[:, 1].tolist()
    assert got.train_images[2].tobytes() == found[2, 2:].tobytes()


def test_broken_binary_cifar_is_refused(tmp_path):
    found = records(TEN, 1, 10, tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(found.tobytes()[:-1])
    with pytest.raises(DataError, match="binary version"):
        load(tmp_path)
    found[0, 0] = 10
    (tmp_path / "test_batch.bin").write_bytes(found.tobytes())
    with pytest.raises(DataError, match="not cifar-10"):
        load(tmp_path)
    (tmp_path / "data_batch_1.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_1\.bin"):
        load(tmp_path)


class _Calls:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_a_command_does_not(tmp_path):
    path, marker = tmp_path / "data_batch_1", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"data": _Calls(os.system, (f"touch {marker}",))}, 2))
    with pytest.raises(DataError, match=r"asks for 'posix system'"):
        load(tmp_path)
    assert not marker.exists()


def array_state(*state) -> bytes:
    """A pickle of an array whose state is anything."""
    from numpy._core.multiarray import _reconstruct

    return pickle.dumps({"data": _Calls(_reconstruct, (np.ndarray, (0,), b"b"), state)}, 3)


HOSTILE = {
    "empty": b"",
    "no pickle": b"GIF89a...",
    "cut": pickle.dumps(batch(0), 2)[:-900],
    "cut at the end": pickle.dumps(batch(0), 2)[:-1],
    "no dictionary": pickle.dumps([1, 2]),
    "eval": pickle.dumps({"data": _Calls(eval, ("1/0",))}),
    "a class": pickle.dumps({"data": SimpleNamespace(a=1)}),
    "objects": pickle.dumps({"data": np.array([[None]], object)}, 2),
    "floats": pickle.dumps({"data": np.zeros((1, 3072))}, 2),
    "shape beyond the bytes": array_state(1, (1 << 40, 3072), np.dtype("u1"), False, b"12"),
    "negative shape": array_state(1, (-1, -2), np.dtype("u1"), False, b"12"),
    "endless shape": array_state(1, (2,) * 500, np.dtype("u1"), False, b"12"),
    "no state": array_state(7),
    "bytes are a list": array_state(1, (2,), np.dtype("u1"), False, [1, 2]),
    "memo that is absent": b"\x80\x02h\x07.",
    "append to a number": b"\x80\x02K\x01K\x02a.",
    "set without a mark": b"\x80\x02}K\x01u.",
    "odd items": b"\x80\x02}(K\x01u.",
    "keys that nest": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "type that nests": array_state(1, (2,), None, False, b"12"),
    "out of stack": b"\x80\x02\x87.",
    "state of a number": b"\x80\x02K\x01}b.",
    "name that is called on nothing": b"\x80\x02c_codecs\nencode\n)R.",
    "encode of a number": b"\x80\x02c_codecs\nencode\nK\x05X\x06\x00\x00\x00latin1\x86R.",
    "name of a number": b"\x80\x04K\x01K\x02\x93.",
    "new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "two values": b"\x80\x02}}.",
    "bytes that are not there": b"\x80\x05\x8e" + b"\xff" * 7 + b"\x0f.",
    "far memo": b"\x80\x02}r\xff\xff\xff\xffK\x01.",
    "digits without end": b"I" + b"9" * 10_000 + b"\n.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, content):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1: was not read"):
        read_pickled_arrays(path)


def test_instructions_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled_arrays, "_MOST_INSTRUCTIONS", 100)
    path = tmp_path / "many"
    path.write_bytes(b"]" * 101 + b".")
    with pytest.raises(DataError, match="more than 100 instructions"):
        read_pickled_arrays(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": np.zeros((3, 3071), np.uint8)}, "no array 'data'"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "no array 'data'"),
        ({"data": [1, 2, 3]}, "no array 'data'"),
        ({"labels": [1, 2]}, "no list 'labels' of 3"),
        ({"labels": [1, 2, "3"]}, "no list 'labels' of 3"),
        ({"labels": [1, 2, 10]}, "not cifar-10"),
        ({"labels": [1, 2, -1]}, "not cifar-10"),
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, change, says):
    for seed, name in enumerate(TEN):
        (tmp_path / name).write_bytes(pickle.dumps(batch(seed) | change, 4))
    with pytest.raises(DataError, match=says):
        load(tmp_path)
