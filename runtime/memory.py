"""Large pages for large tensors."""

from __future__ import annotations

import ctypes
import functools
import mmap
from typing import Any, TypeVar

__all__ = ["huge_pages"]

_SMALLEST = 4 << 20  # two huge pages: below, one may not fit in between the ends
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1

_Buffer = TypeVar("_Buffer")


def huge_pages(tensor: _Buffer) -> _Buffer:
    """Ask the system to keep a tensor's memory in huge pages, and return the tensor.

    Rows of a large matrix that are read in random order each cost a miss of the processor's table
    of small pages; on 2 MB pages they do not. Only advice: nothing happens for small tensors, off
    the CPU, on systems other than Linux and where the system refuses. Memory that is in use is
    moved now, where Linux can (6.1 and later), else by the system in time.

    Args:
        tensor: a torch tensor.
    """
    each: Any = tensor
    if each.device.type != "cpu" or each.nbytes < _SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    if hasattr(each, "fake_mode"):  # a tensor without memory, which only has a size
        return tensor
    page = mmap.PAGESIZE
    begin = -(-each.data_ptr() // page) * page
    size = (each.data_ptr() + each.nbytes - begin) // page * page
    if _madvise()(begin, size, mmap.MADV_HUGEPAGE) == 0:
        _madvise()(begin, size, _COLLAPSE)
    return tensor


@functools.cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
