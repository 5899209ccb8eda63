import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

WORKER = Path(__file__).with_name("worker.py")
_MOST = 3  # ranks that a test asks for
_PATIENCE = 120.0  # seconds; machines are busy


class _Ranks:
    """Worker processes that stay for many tests, each of which forms a process group of its own."""

    def __init__(self) -> None:
        self._workers: list[subprocess.Popen] = []

    def __call__(self, size: int, function, *args, timeout: float = _PATIENCE) -> list:
        """Run ``function(group, *args)`` of a test file on ``size`` ranks; results by rank."""
        answers = self.outcomes(size, function, *args, timeout=timeout)
        for rank, (fine, answer) in enumerate(answers):
            assert fine, f"rank {rank} of {size}: {answer}"
        return [answer for _, answer in answers]

    def outcomes(self, size: int, function, *args, timeout: float = _PATIENCE) -> list:
        """Return for each rank whether it got to the end, and its result or error."""
        # As torchrun does: the parent keeps the store, at any free port.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        task = {
            "file": function.__code__.co_filename,
            "function": function.__name__,
            "args": args,
            "size": size,
            "port": store.port,
            "timeout": timeout,
        }
        while len(self._workers) < _MOST:
            self._workers.append(self._start())
        for rank, worker in enumerate(self._workers[:size]):
            pickle.dump({**task, "rank": rank}, worker.stdin)
            worker.stdin.flush()
        return [self._answer(rank) for rank in range(size)]

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()

    def _start(self) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, str(WORKER)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen(command, **pipes, env=environment)

    def _answer(self, rank: int) -> tuple:
        try:
            return pickle.load(self._workers[rank].stdout)
        except EOFError:
            code = self._workers[rank].wait()
            self._workers[rank] = self._start()
            return False, f"process ended with status {code}"


@pytest.fixture(scope="session")
def spawn():
    ranks = _Ranks()
    yield ranks
    ranks.close()
