"""Functions that ``torch.compile`` leaves alone."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["uncompiled"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def uncompiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function run as it is, even when ``torch.compile`` compiles what calls it.

    As ``torch.compiler.disable``, which however loads the compiler, 150 MB of modules, at once.
    Here a program that compiles nothing never loads it.
    """
    disabled = torch._disable_dynamo(function)  # loads the compiler when it is called first

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        loaded = torch.compiler.is_compiling() or "torch._dynamo" in sys.modules
        return (disabled if loaded else function)(*args, **kwargs)

    return call
