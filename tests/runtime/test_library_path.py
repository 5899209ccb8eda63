"""Finding the compiled parts, and what is said when they are missing."""

import subprocess
import sys
from pathlib import Path

import pytest

import qcompile
from qcompile import plugin


def test_library_is_an_absolute_path_to_a_file():
    path = Path(qcompile.get_library_path())
    assert path.is_absolute() and path.is_file() and path.name == plugin.LIBRARY


def test_variable_overrides_the_installed_library(monkeypatch, tmp_path):
    other = tmp_path / "other.so"
    other.write_bytes(b"not a library")
    monkeypatch.setenv("QCOMPILE_LIBRARY", str(other))
    assert qcompile.get_library_path() == str(other)
    with pytest.raises(
        qcompile.PluginError, match=r"onnxruntime \d.*cannot load .*other.so"
    ) as info:
        qcompile.session_options()
    assert "QCOMPILE_LIBRARY" in str(info.value)


def test_variable_that_names_nothing_is_an_error(monkeypatch):
    monkeypatch.setenv("QCOMPILE_LIBRARY", "/nowhere/lib.so")
    with pytest.raises(qcompile.PluginError, match=r"/nowhere/lib\.so.*no file"):
        qcompile.get_library_path()


def test_missing_library_names_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.delenv("QCOMPILE_LIBRARY", raising=False)
    monkeypatch.setattr(plugin, "_beside_package", lambda: [tmp_path / plugin.LIBRARY])
    monkeypatch.setattr(plugin, "_recorded_files", lambda: [])
    with pytest.raises(qcompile.PluginError, match=r"looked at .*Reinstall"):
        plugin.get_library_path()


def test_library_exports_its_entry_point_alone():
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", qcompile.get_library_path()],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert symbols[2::3] == ["RegisterCustomOps"]


def test_missing_core_is_a_plugin_error():
    code = (
        "import sys; sys.modules['qcompile.runtime._core'] = None\n"
        "import qcompile\n"
        "try:\n"
        "    from qcompile.runtime import _core\n"
        "except qcompile.PluginError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be imported" in run.stdout and "Reinstall" in run.stdout


def test_importing_the_face_imports_no_onnxruntime():
    code = "import sys, qcompile.plugin; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
