"""What kernels have to know of a device and of torch's settings."""

from __future__ import annotations

import functools

import torch

SMALLEST_SHARED = 99 << 10
"""Bytes of shared memory that a block of any supported GPU may have (sm_86, sm_89, sm_120)."""

FEW_PROCESSORS = 80
"""Multiprocessors of a GPU of which nothing is known."""


def precision(dtype: torch.dtype) -> str:
    """Return the precision of float32 products, ``tf32`` or ``ieee``: that of torch's own."""
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Return bytes of shared memory that a block may have."""
    if device.type == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        return int(getattr(properties, "shared_memory_per_block_optin", SMALLEST_SHARED))
    return SMALLEST_SHARED


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many multiprocessors a device has."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return FEW_PROCESSORS
