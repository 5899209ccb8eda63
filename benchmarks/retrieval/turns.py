"""Engines in processes of their own that take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Remote"]

_HERE = Path(__file__).parents[1]


class Remote:
    """An engine in a process of its own.

    Args:
        engine: its name.
        head: name of the head.
        folder: where heads and indexes are kept.
        threads: that it may use.
    """

    def __init__(self, engine: str, head: str, folder: Path, threads: int) -> None:
        count = str(threads)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        arguments = json.dumps([engine, head, str(folder), threads])
        self.name = f"{engine} on {head}"
        self.log = (folder / "log.txt").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "retrieval.worker", arguments],
            cwd=_HERE,
            env={**os.environ, **limits},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            RuntimeError: the process ended instead.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            last = Path(self.log.name).read_text().splitlines()[-12:]
            raise RuntimeError(f"{self.name}: {do} failed:\n" + "\n".join(last))
        return json.loads(line)

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()
