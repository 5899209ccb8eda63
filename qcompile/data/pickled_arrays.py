"""Reads the arrays and lists of a pickle without running it.

A pickle is a program that may call anything. This is an interpreter of the few instructions that
dictionaries of numbers, texts and NumPy arrays are written in; whatever else is there is refused.
Nothing is imported and nothing is called: of the four functions whose names may occur, stand-ins
keep the arguments. Instructions are counted, so that memory is bounded as well.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.bounded import read_file
from qcompile.errors import DataError

__all__ = ["read_pickled_arrays"]

_MOST_INSTRUCTIONS = 2_000_000  # the largest of CIFAR's files has 300,000
_MOST_AXES = 4
_ARRAY, _TYPE, _ENCODE = "array", "type", "encode"
_NAMES = {
    "numpy.core.multiarray _reconstruct": _ARRAY,
    "numpy._core.multiarray _reconstruct": _ARRAY,
    "numpy ndarray": "ndarray",
    "numpy dtype": _TYPE,
    "_codecs encode": _ENCODE,  # how Python 3 writes bytes in old protocols
}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "UNICODE"}
_OLD_TEXTS = {"BINSTRING", "SHORT_BINSTRING", "STRING"}  # Python 2's, which are bytes
_BYTES = {"BINBYTES", "SHORT_BINBYTES"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_LOADS = {"GET", "BINGET", "LONG_BINGET"}
_IGNORED = {"PROTO", "FRAME"}


def read_pickled_arrays(path: Path) -> dict[str, Any]:
    """Return the dictionary that a pickle holds: numbers, texts, bytes, lists and uint8 arrays.

    Args:
        path: of the file, gzipped or not; Python 2's count, too.

    Raises:
        DataError: the file cannot be read or is damaged, an instruction or a name in it is not one
            of those that this takes, or it holds something else.
    """
    try:
        found = _Machine().run(read_file(path))
        if not isinstance(found, dict):
            raise _RefusedError(f"it holds a {type(found).__name__}, expected a dictionary")
        return {_text(key): _finished(value) for key, value in found.items()}
    except (ValueError, IndexError, KeyError, TypeError, UnicodeError) as error:
        reason = error if isinstance(error, _RefusedError) else f"it is damaged ({error})"
        raise DataError(
            f"{path}: was not read: {reason}. A pickle can run any code, so only plain arrays and "
            "lists are taken; where there is a binary version of the set, prefer it."
        ) from error


class _RefusedError(ValueError):
    """Legal in a pickle, and not taken."""


@dataclass(frozen=True)
class _Name:
    """A function that is never called."""

    what: str


@dataclass
class _Array:
    state: Any = None


@dataclass
class _Type:
    name: Any


class _Machine:
    """A stack and a memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._do: dict[str, Callable[[], None]] = {
            "MARK": lambda: self._marks.append(len(self._stack)),
            "EMPTY_DICT": lambda: self._stack.append({}),
            "EMPTY_LIST": lambda: self._stack.append([]),
            "TUPLE": lambda: self._stack.append(tuple(self._marked())),
            "LIST": lambda: self._stack.append(self._marked()),
            "DICT": lambda: self._stack.append(_pairs(self._marked())),
            "APPEND": lambda: self._append([self._stack.pop()]),
            "APPENDS": lambda: self._append(self._marked()),
            "SETITEM": lambda: self._set([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda: self._set(self._marked()),
            "REDUCE": self._reduce,
            "BUILD": self._build,
        }

    def run(self, content: bytes) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if operation.name == "STOP":
                break
            if count == _MOST_INSTRUCTIONS:
                raise _RefusedError(f"it has more than {count:,} instructions")
            self._step(operation.name, argument)
        (found,) = self._stack
        return found

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _TEXTS or name in _NUMBERS or name in _BYTES:
            stack.append(argument)
        elif name in _OLD_TEXTS:
            stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[len(stack) - count :] = [tuple(stack[len(stack) - count :])]
        elif name in _STORES:
            self._memo[len(self._memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in _LOADS:
            stack.append(self._memo[int(argument)])
        elif name == "GLOBAL" or name == "STACK_GLOBAL":
            asked = argument if name == "GLOBAL" else " ".join([stack.pop(-2), stack.pop()])
            if asked not in _NAMES:
                raise _RefusedError(f"it asks for {asked[:60]!r}")
            stack.append(_Name(_NAMES[asked]))
        elif name in self._do:
            self._do[name]()
        elif name not in _IGNORED:
            raise _RefusedError(f"it has the instruction {name}")

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("something is appended to no list")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise ValueError("something is set in no dictionary")
        self._stack[-1].update(_pairs(items))

    def _reduce(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        what = called.what if isinstance(called, _Name) else None
        if what == _ARRAY:
            self._stack.append(_Array())
        elif what == _TYPE:
            self._stack.append(_Type(arguments[0]))
        elif what == _ENCODE and isinstance(arguments[0], str) and arguments[1:] == ("latin1",):
            self._stack.append(arguments[0].encode("latin-1"))
        else:
            raise _RefusedError(f"it calls {what or type(called).__name__}")

    def _build(self) -> None:
        state, built = self._stack.pop(), self._stack[-1]
        if isinstance(built, _Array):
            built.state = state
        elif not isinstance(built, _Type):  # the state of a type is its byte order
            raise _RefusedError(f"it sets the state of a {type(built).__name__}")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2 or not all(isinstance(key, str | bytes) for key in items[::2]):
        raise ValueError("the keys of a dictionary are no texts")
    return dict(zip(items[::2], items[1::2], strict=True))


def _text(key: str | bytes) -> str:
    return key.decode("ascii") if isinstance(key, bytes) else key


def _finished(value: Any) -> Any:
    return _array(value) if isinstance(value, _Array) else value


def _array(stored: _Array) -> NDArray[np.uint8]:
    """Make the array whose state NumPy has written: version, shape, type, Fortran order, bytes."""
    _, shape, kind, fortran, content = stored.state
    if not isinstance(kind, _Type) or kind.name not in ("u1", b"u1"):
        raise _RefusedError("it has an array of another type than u1")
    if (
        not isinstance(content, bytes)
        or len(shape) > _MOST_AXES
        or not all(isinstance(n, int) and n >= 0 for n in shape)
    ):
        raise ValueError("an array has no shape and bytes")
    if math.prod(shape) != len(content):
        raise ValueError(f"an array of {list(shape)} has {len(content):,} bytes")
    order = "F" if fortran is True else "C"
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)  # type: ignore[call-overload]
