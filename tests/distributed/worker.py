"""A process that runs functions of test files as one rank; started by the ``spawn`` fixture."""

import importlib.util
import os
import pickle
import sys
import traceback
from pathlib import Path

import torch

from qcompile.distributed import ranks


def _load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _run(task: dict):
    os.environ.update(RANK=str(task["rank"]), WORLD_SIZE=str(task["size"]))
    os.environ.update(LOCAL_RANK=str(task["rank"]), GROUP_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(task["port"]))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    torch.manual_seed(0)
    with ranks(task["timeout"]) as group:
        return getattr(_load(task["file"]), task["function"])(group, *task["args"])


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a test prints is no answer
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, _run(task))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
