"""Divides the classes of a model among shards and merges their answers: the road to more machines.

    python examples/serve_shards.py [--shards N]

A class among the k best of all is among the k best of its shard, for whatever beats it there beats
it everywhere. So the k best of the shards' answers are the k best of all, ids and scores alike, and
a shard sends k pairs however many classes it holds. Here the shards are threads of one process;
between machines the hidden vector travels there and the pairs travel back.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import qcompile

CLASSES, WIDTH, BEST = 100_003, 64, 10


def open_layer(layer: nn.Linear, path: Path) -> onnxruntime.InferenceSession:
    """Export one layer and open it with the plugin."""
    batch = ({0: torch.export.Dim("batch")},)
    example = (torch.randn(2, layer.in_features),)
    qcompile.export(layer, path, example, top_k=BEST, dynamic_shapes=batch, measure=False)
    return onnxruntime.InferenceSession(str(path), qcompile.session_options())


def part(layer: nn.Linear, start: int, stop: int) -> nn.Linear:
    """Return a layer of some of the classes."""
    made = nn.Linear(layer.in_features, stop - start)
    made.weight, made.bias = (nn.Parameter(p[start:stop]) for p in (layer.weight, layer.bias))
    return made.eval()


def ask(session: onnxruntime.InferenceSession, hidden: np.ndarray) -> list[np.ndarray]:
    """Return scores and ids, [batch, BEST] each."""
    return session.run(["scores", "ids"], {session.get_inputs()[0].name: hidden})


def merge(answers: list, starts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the best of all shards' answers, of equal scores the smaller id first."""
    scores = np.concatenate([scores for scores, _ in answers], axis=1)
    ids = np.concatenate(
        [ids + start for (_, ids), start in zip(answers, starts, strict=True)], axis=1
    )
    order = np.lexsort((ids, -scores))[:, :BEST]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def main(shards: int = 3) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, CLASSES).eval()
    edges = [CLASSES * shard // shards for shard in range(shards + 1)]
    hidden = np.random.default_rng(0).normal(size=(100, WIDTH)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(shards) as pool:
        whole = ask(open_layer(layer, Path(folder) / "whole.onnx"), hidden)
        sessions = [
            open_layer(part(layer, start, stop), Path(folder) / f"{start}.onnx")
            for start, stop in itertools.pairwise(edges)
        ]
        answers = list(pool.map(lambda session: ask(session, hidden), sessions))
    merged = merge(answers, edges[:-1])
    same = all(np.array_equal(one, other) for one, other in zip(merged, whole, strict=True))
    print(f"{shards} shards of {CLASSES:,} classes: {'the same' if same else 'other'} answers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=3)
    main(parser.parse_args().shards)
