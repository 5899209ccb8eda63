"""Output layers as models of their own, to try settings of an index on in whole Run() calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qcompile.passes.onnx.head import attributes_of, top_k_model
from qcompile.running.sessions import Session
from qcompile.runtime.index import Index

_BATCH = 256
"""Queries that are answered together where no time is taken."""


class Trials:
    """One output layer and its indexes, on disk, so that another setting needs no second copy.

    Args:
        weight: float32 [N, d].
        bias: float32 [N].
        k: how many answers.
        folder: where the files go; whose caller removes it.
        log_sum: whether the layer hands out the logarithm of its partition function, too.
    """

    def __init__(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        k: int,
        folder: Path,
        log_sum: bool = False,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.k = k
        self.log_sum = log_sum
        self._folder = folder
        self._written: dict[int, tuple[Index, onnx.ModelProto]] = {}
        self._count = 0

    def session(self, index: Index) -> Session:
        """Return a session of the layer alone that searches ``index``, with the plugin."""
        model = self._model(index)
        (node,) = model.graph.node
        del node.attribute[:]
        node.attribute.extend(ir.to_proto(a) for a in attributes_of(self.k, index))
        self._count += 1
        path = self._folder / f"trial-{self._count}.onnx"
        path.write_bytes(model.SerializeToString())
        return Session(path, plugin=True, literal=False)

    def answers(self, session: Session, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores that the layer hands out for queries [n, d], float32 [n, k]."""
        return self._output("scores", session, queries)

    def log_sums(self, session: Session, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logarithms of the partition function for queries [n, d], float32 [n]."""
        return self._output("log_sum", session, queries)[:, 0]

    def _output(
        self, name: str, session: Session, queries: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        parts = [
            session.run({"hidden": queries[start : start + _BATCH]})[name]
            for start in range(0, len(queries), _BATCH)
        ]
        return np.concatenate(parts)

    def _model(self, index: Index) -> onnx.ModelProto:
        """Write the arrays of ``index``, unless they are there, and return the model's graph."""
        key = id(index.arrays)
        if key not in self._written:
            number = len(self._written)
            path = self._folder / f"index-{number}.onnx"
            model = top_k_model(self.weight, self.bias, self.k, index, log_sum=self.log_sum)
            ir.save(model, path, external_data=f"index-{number}.data")
            # The index is kept, so that no other arrays get its identity.
            self._written[key] = (index, onnx.load(path, load_external_data=False))
        return self._written[key][1]
