"""Writes datasets for other programs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.errors import DataError

__all__ = ["write_xmc"]

_ROWS = 4096  # examples turned into text at a time


def write_xmc(path: str | os.PathLike[str], dataset: SparseDataset) -> None:
    """Write the Extreme Classification Repository's format, which keeps every float32 exactly.

    Args:
        path: the file, written under a temporary name first.
        dataset: what to write.

    Raises:
        DataError: the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="ascii") as file:
            file.write(f"{len(dataset)} {dataset.num_features} {dataset.num_labels}\n")
            for start in range(0, len(dataset), _ROWS):
                file.writelines(_lines(dataset, start, min(start + _ROWS, len(dataset))))
        temporary.replace(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _lines(dataset: SparseDataset, start: int, stop: int) -> list[str]:
    batch = dataset.batch(np.arange(start, stop))
    pairs = [
        f"{index}:{value:.9g}"
        for index, value in zip(
            batch.features.indices.tolist(), batch.features.data.tolist(), strict=True
        )
    ]
    ends = batch.features.indptr.tolist()
    return [
        f"{','.join(str(label) for label in labels if label >= 0)} "
        f"{' '.join(pairs[ends[row] : ends[row + 1]])}\n"
        for row, labels in enumerate(batch.labels.tolist())
    ]
