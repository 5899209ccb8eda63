"""Indexes for inner products and nearest neighbours, each given the layer as it suits it best.

The bias is one more coordinate, (b / s, s) with s = 20: as (b, 1) its spread would outweigh the
weights and spoil every clustering and every quantiser. Graphs are built for Euclidean distance
after the transform that makes rows equally long (Bachrach et al., Speeding Up the Xbox Recommender
System Using a Euclidean Transformation for Inner-Product Spaces, RecSys 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.engine import Engine, K, Point, Search
from retrieval.heads import Head

__all__ = ["FaissFastScan", "FaissFlat", "FaissHNSW", "Hnswlib", "ScaNN"]

_BIAS_SCALE = 20.0


def rows(head: Head, *, equally_long: bool = False, multiple: int = 1) -> np.ndarray:
    """Return the rows with what the bias adds: float32 [N, d + 1 or more]."""
    parts = [head.weight, head.bias[:, None] / _BIAS_SCALE]
    if equally_long:
        length = np.square(head.weight).sum(axis=1) + np.square(head.bias / _BIAS_SCALE)
        parts.append(np.sqrt(np.maximum(length.max() - length, 0))[:, None])
    return _padded(parts, multiple)


def queries(hidden: np.ndarray, *, equally_long: bool = False, multiple: int = 1) -> np.ndarray:
    """Return hidden vectors as :func:`rows` needs them."""
    count = len(hidden)
    parts = [hidden, np.full((count, 1), _BIAS_SCALE, np.float32)]
    if equally_long:
        parts.append(np.zeros((count, 1), np.float32))
    return _padded(parts, multiple)


def _padded(parts: list[np.ndarray], multiple: int) -> np.ndarray:
    width = sum(part.shape[1] for part in parts)
    parts = [*parts, np.zeros((len(parts[0]), -width % multiple), np.float32)]
    return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)


class ScaNN(Engine):
    """Partitions, anisotropic 4-bit codes, rescoring in fp32.

    On these heads a larger sample to train on pays most; SOAR and int8 centroids do not.
    """

    package = "scann"
    approximate = True

    def build(self, head: Head, place: Path) -> Callable[[], None]:
        import scann

        leaves = 2 ** round(math.log2(2 * math.sqrt(len(head.weight))))
        builder = scann.scann_ops_pybind.builder(rows(head), K, "dot_product")
        searcher = (
            builder.tree(
                num_leaves=leaves,
                num_leaves_to_search=10,
                training_sample_size=min(len(head.weight), 250_000),
            )
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(100)
            .build()
        )
        return lambda: searcher.serialize(str(place), relative_path=True)

    def open(self, head: Head, place: Path, threads: int) -> None:
        import scann

        self.searcher = scann.scann_ops_pybind.load_searcher(str(place))

    def points(self, head: Head) -> list[Point]:
        return [
            {"leaves": leaves, "rescored": rescored}
            for leaves in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
            for rescored in (20, 40, 100)
        ]

    def search(self, point: Point) -> Search:
        settings = {
            "final_num_neighbors": K,
            "pre_reorder_num_neighbors": point["rescored"],
            "leaves_to_search": point["leaves"],
        }

        def call(hidden: np.ndarray) -> np.ndarray:
            asked = queries(hidden)
            if len(asked) == 1:
                return np.asarray(self.searcher.search(asked[0], **settings)[0])[None]
            return np.asarray(self.searcher.search_batched(asked, **settings)[0])

        return call


class _Faiss(Engine):
    package = "faiss"
    approximate = True
    multiple = 1
    transformed = False

    def make(self, head: Head) -> Any:
        """Return the trained and filled index."""
        raise NotImplementedError

    def parameters(self, point: Point) -> Any:
        """Return what faiss is to search with."""
        raise NotImplementedError

    def build(self, head: Head, place: Path) -> Callable[[], None]:
        import faiss

        made = self.make(head)
        return lambda: faiss.write_index(made, str(place / "index.faiss"))

    def open(self, head: Head, place: Path, threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self.index = faiss.read_index(str(place / "index.faiss"))

    def search(self, point: Point) -> Search:
        parameters = self.parameters(point)
        form = {"equally_long": self.transformed, "multiple": self.multiple}
        return lambda hidden: self.index.search(queries(hidden, **form), K, params=parameters)[1]

    def _factory(self, head: Head, text: str) -> Any:
        import faiss

        data = rows(head, multiple=self.multiple)
        index = faiss.index_factory(data.shape[1], text, faiss.METRIC_INNER_PRODUCT)
        random = np.random.default_rng(0)
        sample = random.choice(len(data), min(len(data), 100_000), replace=False)
        index.train(data[np.sort(sample)])
        index.add(data)
        return index


def _lists(head: Head) -> int:
    return 2 ** round(math.log2(3 * math.sqrt(len(head.weight))))


class FaissFlat(_Faiss):
    """Inverted lists of fp32 rows."""

    def make(self, head: Head) -> Any:
        return self._factory(head, f"IVF{_lists(head)},Flat")

    def points(self, head: Head) -> list[Point]:
        return [{"lists": lists} for lists in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)]

    def parameters(self, point: Point) -> Any:
        import faiss

        return faiss.SearchParametersIVF(nprobe=point["lists"])


class FaissFastScan(_Faiss):
    """Inverted lists of 4-bit codes in registers, the best rescored in fp32."""

    multiple = 4

    def make(self, head: Head) -> Any:
        width = rows(head, multiple=self.multiple).shape[1]
        return self._factory(head, f"IVF{_lists(head)},PQ{width // 2}x4fs,RFlat")

    def points(self, head: Head) -> list[Point]:
        return [
            {"lists": lists, "rescored": rescored}
            for lists in (1, 2, 4, 8, 16, 24, 32, 48, 64)
            for rescored in (40, 100)
        ]

    def parameters(self, point: Point) -> Any:
        import faiss

        base = faiss.SearchParametersIVF(nprobe=point["lists"])
        return faiss.IndexRefineSearchParameters(
            k_factor=point["rescored"] / K, base_index_params=base
        )


_BREADTHS = (10, 16, 24, 32, 64, 96, 128, 256, 512, 1024)


class FaissHNSW(_Faiss):
    """A navigable graph of fp32 rows."""

    transformed = True

    def make(self, head: Head) -> Any:
        import faiss

        data = rows(head, equally_long=True)
        index = faiss.IndexHNSWFlat(data.shape[1], 16, faiss.METRIC_L2)
        index.hnsw.efConstruction = 100
        index.add(data)
        return index

    def points(self, head: Head) -> list[Point]:
        return [{"breadth": breadth} for breadth in _BREADTHS]

    def parameters(self, point: Point) -> Any:
        import faiss

        return faiss.SearchParametersHNSW(efSearch=point["breadth"])


class Hnswlib(Engine):
    """The graph's own library."""

    package = "hnswlib"
    approximate = True

    def build(self, head: Head, place: Path) -> Callable[[], None]:
        import hnswlib

        data = rows(head, equally_long=True)
        index = hnswlib.Index("l2", data.shape[1])
        index.init_index(len(data), M=16, ef_construction=100)
        index.add_items(data, np.arange(len(data)))
        return lambda: index.save_index(str(place / "index.hnsw"))

    def open(self, head: Head, place: Path, threads: int) -> None:
        import hnswlib

        self.index = hnswlib.Index("l2", head.weight.shape[1] + 2)
        self.index.load_index(str(place / "index.hnsw"))
        self.index.set_num_threads(threads)

    def points(self, head: Head) -> list[Point]:
        return [{"breadth": breadth} for breadth in _BREADTHS]

    def search(self, point: Point) -> Search:
        def call(hidden: np.ndarray) -> np.ndarray:
            self.index.set_ef(point["breadth"])
            return self.index.knn_query(queries(hidden, equally_long=True), k=K)[0]

        return call
