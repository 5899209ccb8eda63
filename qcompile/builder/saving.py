"""Keeps where a search is, so that it can go on: edits, steps, weights of its networks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qcompile.builder.plan import BuildConfig
from qcompile.builder.result import Importance, Step
from qcompile.errors import CheckpointError

__all__ = ["Progress", "describe", "load", "load_weights", "save"]

_STATE, _WEIGHTS = "search.json", "weights-{}.safetensors"


@dataclass
class Progress:
    """Where a search is.

    Args:
        stage: trainings so far.
        edits: what was done to the replaced network and kept: (action, layer).
        tried: edits that were tried, kept or not.
        steps: for the report.
        importance: once it is known.
    """

    stage: int = 0
    edits: list[tuple[str, str]] = field(default_factory=list)
    tried: list[tuple[str, str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    importance: list[Importance] = field(default_factory=list)


def save(
    folder: Path,
    progress: Progress,
    networks: nn.Module,
    config: BuildConfig,
    given: dict[str, Any],
) -> None:
    """Write the state; a stop at any moment leaves this one or the one before.

    Raises:
        CheckpointError: it cannot be written.
    """
    weights = folder / _WEIGHTS.format(progress.stage)
    state = {"config": config.to_dict(), "network": given, **asdict(progress)}
    temporary = folder / f".{_STATE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(networks), weights)
        temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
        temporary.replace(folder / _STATE)
        for old in folder.glob(_WEIGHTS.format("*")):
            if old != weights:
                old.unlink()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror}.") from error


def load(folder: Path, config: BuildConfig, given: dict[str, Any]) -> Progress | None:
    """Return where a search in this folder is; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or is of another network or configuration; the message
            names the first difference.
    """
    path = folder / _STATE
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        for what, mine in (("config", config.to_dict()), ("network", given)):
            theirs = state.pop(what)
            for name in [*mine, *theirs]:
                if mine.get(name) != theirs.get(name):
                    raise CheckpointError(
                        f"{path}: is of another search: {what} {name} is {mine.get(name)!r}, was "
                        f"{theirs.get(name)!r}. Name another folder, or go back to what it was."
                    )
        return Progress(
            stage=int(state["stage"]),
            edits=[(str(a), str(n)) for a, n in state["edits"]],
            tried=[(str(a), str(n)) for a, n in state["tried"]],
            steps=[Step(**each) for each in state["steps"]],
            importance=[Importance(**each) for each in state["importance"]],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove it to start anew."
        ) from error


def load_weights(folder: Path, progress: Progress, networks: nn.Module) -> None:
    """Read the weights of the networks that ``progress`` describes.

    Raises:
        CheckpointError: they cannot be read or do not fit.
    """
    path = folder / _WEIGHTS.format(progress.stage)
    try:
        networks.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def describe(model: nn.Module) -> dict[str, Any]:
    """Return names, shapes and types of a network's tensors, and their sum, to know it again."""
    found: dict[str, Any] = {
        name: f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}"
        for name, t in model.state_dict().items()
        if isinstance(t, Tensor)
    }
    total = sum(float(t.detach().double().sum()) for t in model.parameters())
    return {**found, "sum of parameters": repr(total)}


def _tensors(networks: nn.Module) -> dict[str, Tensor]:
    # Clones: safetensors refuses tensors that share memory, as tied weights do.
    return {
        name: tensor.detach().clone().contiguous()
        for name, tensor in networks.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
