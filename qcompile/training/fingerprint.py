"""Tells whether a resumed run reads the data that it was begun with."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from qcompile.data.sparse_dataset import SparseDataset

__all__ = ["differences", "fingerprint"]

_SAMPLES = 64
_BYTES = 1 << 16


def fingerprint(dataset: SparseDataset) -> dict[str, Any]:
    """Return sizes and a digest.

    The digest covers 64 stretches of 64 KiB, evenly spaced, of each array, and so all of small
    data; of data larger than memory it costs nothing to speak of.
    """
    digest = hashlib.blake2b(digest_size=16)
    for matrix in (dataset.features, dataset.labels):
        for array in (matrix.indptr, matrix.indices, matrix.data):
            _sample(digest, array)
    return {
        "rows": len(dataset),
        "features": dataset.num_features,
        "labels": dataset.num_labels,
        "feature entries": int(dataset.features.nnz),
        "label entries": int(dataset.labels.nnz),
        "digest": digest.hexdigest(),
    }


def differences(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Say in words what differs between two fingerprints."""
    sizes = [
        f"{name}: {now[name]:,} now, {before.get(name)!r} before"
        for name in now
        if name != "digest" and now[name] != before.get(name)
    ]
    if sizes or now["digest"] == before.get("digest"):
        return sizes
    return ["the values, though not the sizes"]


def _sample(digest: Any, array: np.ndarray) -> None:
    items = max(1, _BYTES // array.dtype.itemsize)
    last = max(len(array) - items, 0)
    for begin in sorted({round(place * last / (_SAMPLES - 1)) for place in range(_SAMPLES)}):
        digest.update(np.ascontiguousarray(array[begin : begin + items]).view(np.uint8).data)
