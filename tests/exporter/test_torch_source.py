"""What the command line's SOURCE may name besides an ONNX file."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from qcompile.errors import ExportError
from qcompile.exporter.reading import load_source


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        nn.Linear(4, 3), (torch.randn(2, 4),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(exported, path)
    return path


def rewrite(path: Path, change) -> None:
    """Write an archive anew, each entry's bytes through ``change(name, content)``."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))


class Bomb:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_program_comes_back(program):
    loaded = load_source(program)
    assert loaded.module()(torch.randn(5, 4)).shape == (5, 3)


def test_an_onnx_file_is_named_by_its_path(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"anything")
    assert load_source(str(path)) == path


def test_callables_and_modules():
    assert isinstance(load_source("torch.nn:Identity"), nn.Identity)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.pt2", "no such file"),
        ("nowhere.pth", "no such file"),
        ("torch.nn:Nobody", "cannot be found"),
        ("no_such_package:build", "cannot be found"),
        ("torch.nn:Linear", "fails: TypeError"),
        ("torch:pi", "is float, not a callable"),
        ("torch.nn:Module.__init__", "fails: TypeError"),
        ("builtins:dict", "returned dict"),
        ("model.txt", "not a model that can be read"),
    ],
)
def test_what_names_no_model(spec, message):
    with pytest.raises(ExportError, match=message):
        load_source(spec)


def test_damaged_programs(program):
    content = program.read_bytes()
    rng = random.Random(0)
    program.write_bytes(b"")
    with pytest.raises(ExportError, match="empty"):
        load_source(program)
    for _ in range(40):
        broken = bytearray(content[: rng.randrange(len(content))])
        program.write_bytes(bytes(broken) or b"x")
        with pytest.raises(ExportError):
            load_source(program)
    for _ in range(40):
        broken = bytearray(content)
        broken[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        program.write_bytes(broken)
        try:
            load_source(program)
        except ExportError:
            continue


def test_a_program_with_a_pickled_object_is_refused_unread(program, tmp_path):
    mark = tmp_path / "ran"
    bomb = io.BytesIO()
    torch.save(Bomb(mark), bomb)

    def plant(name: str, content: bytes) -> bytes:
        return bomb.getvalue() if name.endswith("sample_inputs/model.pt") else content

    rewrite(program, plant)
    with pytest.raises(ExportError, match="could run any code"):
        load_source(program)
    assert not mark.exists()


def test_a_weight_that_says_it_is_pickled_is_refused_unread(program, tmp_path):
    mark = tmp_path / "ran"

    def plant(name: str, content: bytes) -> bytes:
        if name.endswith("weights/weight_0"):
            return pickle.dumps(Bomb(mark))
        if name.endswith("model_weights_config.json"):
            table = json.loads(content)
            table["config"]["weight"]["use_pickle"] = True
            return json.dumps(table).encode()
        return content

    rewrite(program, plant)
    with pytest.raises(ExportError, match="could run any code"):
        load_source(program)
    assert not mark.exists()


@pytest.mark.parametrize(
    "expression",
    ["__import__('os').getcwd()", "Symbol('s0').__class__", "exec('1')", "open('x')", "(" * 99],
)
def test_an_expression_that_is_more_than_a_size_is_refused(program, expression):
    def plant(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        document = content.decode()
        start = document.index('"expr_str": "') + len('"expr_str": "')
        end = document.index('"', start)
        return (document[:start] + expression + document[end:]).encode()

    rewrite(program, plant)
    with pytest.raises(ExportError):
        load_source(program)


def test_compiled_code_is_refused(program):
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("model/data/aotinductor/model/model.so", b"\x7fELF")
    with pytest.raises(ExportError, match="compiled code"):
        load_source(program)


def test_an_archive_that_swells_is_refused(tmp_path):
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/weights/weight_0", bytes(8 << 20))
    with pytest.raises(ExportError, match="claims"):
        load_source(path)


def test_a_pickled_module_only_where_it_is_allowed(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 3), path)
    with pytest.raises(ExportError, match="--allow-pickle"):
        load_source(path)
    assert load_source(path, allow_pickle=True).out_features == 3
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ExportError, match="holds dict, not a module"):
        load_source(path, allow_pickle=True)
    path.write_bytes(b"garbage")
    with pytest.raises(ExportError, match="cannot be loaded"):
        load_source(path, allow_pickle=True)
