"""Serves a model from several processes on one machine: Ray Serve replicas with the plugin.

    python examples/serve_ray.py [MODEL.onnx] [--replicas N]    # needs the extra `serve`

Each replica is a process with a session of its own and one thread. The weights lie in a file beside
the model, so that replicas map the same pages instead of each holding a copy. Ray forms the batches
that several vectors of one processor share.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
class Head:
    """One replica."""

    def __init__(self, path: str) -> None:
        import qcompile

        options = qcompile.session_options()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.name = self.session.get_inputs()[0].name

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.001)
    async def answer(self, vectors: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.session.run(["ids"], {self.name: np.stack(vectors)})[0])

    async def __call__(self, vector: np.ndarray) -> tuple[int, np.ndarray]:
        return os.getpid(), await self.answer(vector)


def run(path: Path, vectors: np.ndarray, replicas: int = 2) -> tuple[set[int], np.ndarray]:
    """Start the replicas, ask them all at once, and return their processes and the answers."""
    ray.init(num_cpus=replicas + 1, include_dashboard=False, log_to_driver=False)
    try:
        handle = serve.run(Head.options(num_replicas=replicas).bind(str(path)), route_prefix=None)
        answers = [reply.result() for reply in [handle.remote(vector) for vector in vectors]]
    finally:
        serve.shutdown()
        ray.shutdown()
    return {process for process, _ in answers}, np.stack([ids for _, ids in answers])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--replicas", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            from serve_python import export

            options.model = export(Path(folder))
        session = onnxruntime.InferenceSession(str(options.model))
        width = session.get_inputs()[0].shape[1]
        vectors = np.random.default_rng(0).normal(size=(200, width)).astype(np.float32)
        processes, ids = run(options.model.absolute(), vectors, options.replicas)
        expected = session.run(["ids"], {session.get_inputs()[0].name: vectors})[0]
    print(f"{len(processes)} replicas answered {len(ids)} requests")
    print(f"as one plain session would: {(ids == expected).mean():.2%}")


if __name__ == "__main__":
    main()
