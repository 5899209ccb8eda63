"""Indexes of an output layer: what ``LinearTopK`` reads besides weight and bias, in each mode."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile import ops
from qcompile.errors import DataError

__all__ = ["Index", "build_cells", "build_exact", "build_lsh", "code_cells", "store"]

Attribute = int | float | str
_PACKED = ops.LINEAR_TOP_K.inputs[3 : ops.TOP_K_INPUTS["exact"]]


@dataclasses.dataclass(frozen=True)
class Index:
    """The constant inputs and the attributes of ``LinearTopK`` in one mode, for one layer.

    Args:
        mode: ``exact``, ``cells`` or ``lsh``.
        arrays: the inputs after weight and bias, in order; see :mod:`qcompile.ops`.
        attributes: those that differ from their defaults, without ``k`` and ``mode``.
    """

    mode: str
    arrays: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Attribute] = dataclasses.field(default_factory=dict)

    def with_attributes(self, **attributes: Attribute) -> Index:
        """Return the same index, searched otherwise.

        Raises:
            DataError: ``LinearTopK`` has no such attribute, or not of that type.
        """
        known = {name: type(value) for name, value in ops.LINEAR_TOP_K.attributes}
        merged = dict(self.attributes)
        for name, value in attributes.items():
            if name in ("k", "mode") or name not in known:
                names = ", ".join(name for name in known if name not in ("k", "mode"))
                raise DataError(f"index: no attribute {name!r}; there are {names}.")
            try:
                merged[name] = known[name](value)
            except (TypeError, ValueError):
                raise DataError(
                    f"index: attribute {name} is {value!r}, expected {known[name].__name__}."
                ) from None
        return dataclasses.replace(self, attributes=merged)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def build_exact(weight: NDArray[np.float32], planes: int = 2) -> Index:
    """Pack ``weight`` [N, d], float32, for the exact scan.

    Args:
        weight: float32 [N, d].
        planes: 2, or 1 for the high four bits of each value alone.

    Raises:
        DataError: not a non-empty float32 matrix, or a value that is NaN or infinite.
    """
    from qcompile.runtime import _core

    return Index("exact", dict(zip(_PACKED, _core.pack_rows(weight, planes), strict=True)))


def store(weight: NDArray[np.float32], index: Index, rescore: str) -> tuple[NDArray[Any], Index]:
    """Give up some of a layer's precision for its size.

    ========  ==================  ===========================  =================
    rescore   rows                packed rows                  bytes of a value
    ========  ==================  ===========================  =================
    ``fp32``  as they are         eight bits                   5
    ``bf16``  rounded             four bits (cells: eight)     2.5 (cells: 3)
    ``none``  none                eight bits, the layer's own  1
    ========  ==================  ===========================  =================

    Args:
        weight: float32 [N, d].
        index: of :func:`build_exact`, :func:`build_cells` or :func:`build_lsh` over ``weight``.
        rescore: one of :data:`qcompile.ops.RESCORE`.

    Returns:
        The input ``weight`` of ``LinearTopK``, and the index to go with it. What is exact in
        ``fp32`` is then exact for the rounded rows.

    Raises:
        DataError: there is no such ``rescore``, none for cells, or a weight is beyond bfloat16.
    """
    if rescore not in ops.RESCORE:
        raise DataError(f"rescore is {rescore!r}, expected one of {', '.join(ops.RESCORE)}.")
    if rescore == "fp32":
        return weight, index
    if rescore == "none":
        if index.mode == "cells":
            raise DataError(
                "rescore 'none' leaves no rows to search in cells; take bf16, or mode exact or lsh."
            )
        return np.empty((0, weight.shape[1]), np.float32), index
    import ml_dtypes

    with np.errstate(over="ignore"):
        rows = weight.astype(ml_dtypes.bfloat16)
    rounded = rows.astype(np.float32)
    if np.isinf(rounded).any():
        raise DataError("rescore 'bf16': a weight is beyond the largest number of bfloat16.")
    if index.mode == "cells":
        # Of rounded rows the packed ones are as good, but off by more.
        moved = np.linalg.norm((weight - rounded).astype(np.float64), axis=1)
        return rows, _with_error(index, moved)
    packed = build_exact(rounded, planes=1).arrays
    return rows, dataclasses.replace(index, arrays={**index.arrays, **packed})


def _with_error(index: Index, moved: NDArray[np.float64]) -> Index:
    """Add to the errors of an index of cells how far its rows have moved."""
    ids, error = index.arrays["row_ids"], index.arrays["error"]
    more = np.where(ids >= 0, moved[ids], 0)
    raised = np.nextafter((error + more).astype(np.float32), np.float32(np.inf))
    arrays = {**index.arrays, "error": np.where(more > 0, raised, error)}
    return dataclasses.replace(index, arrays=arrays)


def build_cells(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    cells: int | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Index:
    """Divide the rows of an output layer into cells, by k-means on the weights alone.

    The bias is no coordinate: its spread would hide that of the weights. A cell has the mean of its
    biases, a row its own.

    Args:
        weight: float32 [N, d].
        bias: float32 [N].
        cells: how many at most, 1 to N; 7 √N if it is not given.
        seed: of the rows that the clusters start at. Neither threads nor instruction sets change
            the result.
        threads: how many to use; 0 for all.
        progress: called with the part that is done, up to 1.0; what it raises ends the build.

    Raises:
        DataError: shapes or types do not fit, ``cells`` is out of range, or a weight is NaN or
            infinite.
    """
    from qcompile.runtime import _core

    rows = len(weight)
    if cells is None:
        cells = min(rows, math.ceil(7 * math.sqrt(rows)))
    if not 1 <= cells <= rows:
        raise DataError(f"build_cells: cells is {cells}, expected 1 to the {rows} rows.")
    arrays = _core.build_cells(weight, bias, cells, seed, threads, progress)
    return Index("cells", arrays)


def code_cells(weight: NDArray[np.float32], index: Index, bits: int, *, threads: int = 0) -> Index:
    """Let an index of cells have short codes of its rows in the place of packed rows.

    A code says in 2 or 4 bits a value how far a row is from its cell's centroid: of 128 values
    32 or 64 bytes instead of 128. Scores from codes are coarser, so more rows have to be scored
    anew in fp32, for which they are no worse.

    Args:
        weight: float32 [N, d], of which the index was built.
        index: of :func:`build_cells`.
        bits: 2 or 4.
        threads: how many to use; 0 for all. They do not change the result.

    Raises:
        DataError: the index is none of packed rows in cells, does not fit the weight, or there are
            no codes of so many bits.
    """
    from qcompile.runtime import _core

    if index.mode != "cells" or index.attributes.get("bits", 8) != 8:
        raise DataError("code_cells: expected an index of build_cells.")
    if bits not in (2, 4):
        raise DataError(f"code_cells: bits is {bits}, expected 2 or 4.")
    names = ("offsets", "row_ids", "centroids", "centroid_scale")
    arrays = (index.arrays[name] for name in names)
    coded = _core.code_cells(weight, *arrays, bits, threads)
    replaced = dict(zip(("packed", "scale", "error"), coded, strict=True))
    return dataclasses.replace(
        index,
        arrays={**index.arrays, **replaced},
        attributes={**index.attributes, "bits": bits},
    )


def build_lsh(
    weight: NDArray[np.float32],
    *,
    family: str,
    tables: int,
    hashes: int,
    bucket: int,
    policy: str = "reservoir",
    seed: int = 0,
    draw: int = 0,
    exact: Index | None = None,
    threads: int = 0,
) -> Index:
    """Put the rows of an output layer into hash tables, as training does.

    Args:
        weight: float32 [N, d].
        family: ``simhash``, ``wta``, ``dwta`` or ``doph``.
        tables: L.
        hashes: K, codes of one key.
        bucket: rows that one bucket keeps.
        policy: ``reservoir`` or ``fifo``, for a bucket that is full.
        seed: of the hash functions and of the reservoirs.
        draw: which hash functions of that seed.
        exact: index of :func:`build_exact` for the same rows, where there is one.
        threads: how many to use; 0 for all.

    Raises:
        DataError: a weight is NaN or infinite, or a number is out of range.
    """
    from qcompile.runtime import _core

    packed = (exact or build_exact(weight)).arrays
    rows, depth = weight.shape
    built = _core.LshTables(depth, rows, family, tables, hashes, bucket, policy, seed)
    built.build(weight, 0, threads, draw)
    offsets, row_ids = built.arrays()
    signed = built.hash_seed - (built.hash_seed >> 63 << 64)
    attributes: dict[str, Attribute] = {
        "family": family,
        "tables": tables,
        "hashes": hashes,
        "seed": signed,
        "probes": 1,
        "rescore": 256,
    }
    return Index("lsh", {**packed, "offsets": offsets, "row_ids": row_ids}, attributes)
