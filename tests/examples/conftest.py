"""Loads the examples, which are no package."""

import importlib.util
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load_example():
    """Return the module of an example by its name."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
