"""What a checkpoint of a run holds, and which checkpoints a run may go on from."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qcompile.data.sparse_dataset import SparseDataset
from qcompile.distributed import Group, agree
from qcompile.errors import CheckpointError, ConfigurationError
from qcompile.nn.lsh import LSHLinear
from qcompile.training import checkpoint
from qcompile.training.config import TrainConfig
from qcompile.training.fingerprint import differences, fingerprint
from qcompile.training.result import Epoch
from qcompile.training.state_tree import give, take

__all__ = ["Saver", "State", "refuse_other_runs"]


@dataclass
class State:
    """Where a run is, between two steps.

    Args:
        step: steps taken.
        epoch: epochs finished.
        position: batches of the present epoch that are done.
        seconds: of training.
        loss_sum: of the examples of the present epoch.
        examples: of the present epoch that are done.
        history: of the finished epochs.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    examples: int = 0
    history: list[Epoch] = field(default_factory=list)


def refuse_other_runs(folder: Path) -> None:
    """Make sure that no other run keeps its checkpoints in ``folder``.

    Raises:
        CheckpointError: one does.
    """
    try:
        found = checkpoint.find(folder)
    except CheckpointError:
        return
    raise CheckpointError(
        f"{folder} holds the checkpoint {found.name} of another run: go on with it by --resume, "
        "choose another --output, or remove that folder."
    )


class Saver:
    """Writes and reads the checkpoints of one run.

    Args:
        folder: where they are.
        config: of the run.
        train: its data.
        group: its ranks.

    Attributes:
        newest: the last checkpoint that was written or read, or None.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, train: SparseDataset, group: Group
    ) -> None:
        self._folder, self._config, self._group = folder, config, group
        self._data = fingerprint(train)
        self._saved = time.monotonic()
        self.newest: Path | None = None

    def due(self, minutes: float) -> bool:
        """Whether so many minutes, more than 0, have passed since the last checkpoint."""
        return minutes > 0 and time.monotonic() - self._saved >= 60 * minutes

    def save(self, model: nn.Module, optimizer: Optimizer, state: State) -> None:
        """Write a checkpoint; all but the newest two are removed. A collective.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._saved = time.monotonic()
        tensors = {"random": torch.get_rng_state()}
        content = {
            "config": self._config.to_dict(),
            "data": self._data,
            "state": asdict(state),
            "model": take("model", model.state_dict(), tensors),
            "optimizer": take("optimizer", optimizer.state_dict(), tensors),
        }
        self.newest = checkpoint.save(
            self._folder,
            state.step,
            tensors,
            content,
            divided=_divided(model, optimizer, tensors),
            group=self._group,
        )
        if self._group.rank == 0:
            checkpoint.prune(self._folder)

    def restore(self, model: nn.Module, optimizer: Optimizer) -> State:
        """Put weights and optimiser in the state of the newest checkpoint; return the run's.

        Raises:
            CheckpointError: there is none, it is damaged, or of another configuration or data.
        """
        saved = checkpoint.load(self._folder, self._group)
        self._check(saved)
        agree(self._group, {"the newest checkpoint": saved.path.name})
        try:
            model.load_state_dict(give(saved.state["model"], saved.tensors))
            values = give(saved.state["optimizer"], saved.tensors)
            values["state"] = {int(number): kept for number, kept in values["state"].items()}
            # The settings are the configuration's, which is the same.
            values["param_groups"] = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict(values)
            torch.set_rng_state(saved.tensors["random"])
            history = [Epoch(**epoch) for epoch in saved.state["state"].pop("history")]
            state = State(**saved.state["state"], history=history)
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{saved.path}: is not of this network: {error}") from error
        self.newest = saved.path
        return state

    def _check(self, saved: checkpoint.Checkpoint) -> None:
        try:
            before = TrainConfig.from_dict(saved.state["config"])
            wrong = self._config.differences(before)
            data = differences(self._data, saved.state["data"])
        except (KeyError, TypeError, AttributeError, ConfigurationError) as error:
            raise CheckpointError(f"{saved.path}: cannot be read: {error}") from error
        if data:
            wrong.append(f"the training data ({'; '.join(data)})")
        if wrong:
            raise CheckpointError(
                f"{saved.path}: was made by another run, which differs in: {'; '.join(wrong)}. "
                "Resume with what it was begun with, or begin a new run in another folder."
            )


def _divided(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Name the tensors of which ranks have rows, those of output layers, and all of their rows."""
    numbers: dict[int, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers[id(parameter)] = len(numbers)
    divided: dict[str, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, LSHLinear):
            continue
        for name, parameter in module.named_parameters(path, recurse=False):
            moments = f"optimizer.state.{numbers.get(id(parameter))}."
            names = [n for n in tensors if n == f"model.{name}" or n.startswith(moments)]
            # Moments are by row; what has no rows, a count of steps say, is the same everywhere.
            by_row = [n for n in names if tensors[n].shape[:1] == parameter.shape[:1]]
            divided.update(dict.fromkeys(by_row, module.out_features))
    return divided
