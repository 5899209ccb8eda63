"""What ``transform`` is asked for: its arguments, read and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qcompile.config import LSH, MEMORY_LEVELS, Quadratic
from qcompile.errors import ConfigurationError, PassError

__all__ = [
    "QuadraticRequest",
    "SparseRequest",
    "check_model",
    "chooses_memory",
    "read_quadratic",
    "read_sparse",
]

QuadraticRequest = str | Quadratic | Iterable[str | Quadratic] | None
SparseRequest = bool | LSH | Iterable[LSH] | None


def read_quadratic(request: QuadraticRequest, **options: Any) -> list[Quadratic]:
    """Read what was asked for; options that are given hold for each configuration."""
    options = {name: value for name, value in options.items() if value is not None}
    if request is None:
        if options:
            raise ConfigurationError(f"{', '.join(options)}: needs quadratic=, a form.")
        return []
    items = [request] if isinstance(request, str | Quadratic) else request
    if not isinstance(items, Iterable):
        items = [items]
    configs = []
    for item in items:
        config = Quadratic(item) if isinstance(item, str) else item
        if not isinstance(config, Quadratic):
            raise ConfigurationError(
                f"quadratic= takes the name of a form, a qcompile.Quadratic or several of them, "
                f"got {type(config).__name__}."
            )
        configs.append(replace(config, **options))
    return configs


def read_sparse(request: SparseRequest) -> list[LSH]:
    """Read which layers are to be sparse."""
    if request is None or request is False:
        return []
    if request is True:
        return [LSH()]
    items = [request] if isinstance(request, LSH) else request
    configs = list(items) if isinstance(items, Iterable) else [items]
    for config in configs:
        if not isinstance(config, LSH):
            raise ConfigurationError(
                f"sparse_output= takes True, a qcompile.LSH or several of them, got "
                f"{type(config).__name__}."
            )
    return configs


def chooses_memory(
    memory: Any, memory_budget: int | str | None, memory_options: Mapping[str, Any] | None
) -> bool:
    """Return whether memory levels are to be chosen, and check that this is all there is to it."""
    if memory not in (None, "auto", *MEMORY_LEVELS) or isinstance(memory, bool):
        raise ConfigurationError(f"memory must be 'auto', 0, 1 or 3, got {memory!r}.")
    if memory == "auto":
        if memory_budget is None:
            raise ConfigurationError("memory='auto' needs a budget, memory_budget='4GiB' say.")
        return True
    if memory_budget is not None or memory_options is not None:
        raise ConfigurationError("memory_budget and memory_options belong to memory='auto'.")
    return False


def check_model(model: Any) -> nn.Module:
    """Return the module to rewrite.

    Raises:
        PassError: there is none; the message says what to pass instead.
    """
    if isinstance(model, str | Path):
        raise PassError(
            f"transform takes a torch.nn.Module, got the path {str(model)!r}: load the model "
            f"first, or use the command line, qcompile transform."
        )
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise PassError(f"transform takes a module, got the class {model.__name__}: call it first.")
    if isinstance(model, torch.export.ExportedProgram):
        raise PassError(
            "transform takes a torch.nn.Module, got an ExportedProgram, whose layers are already "
            "single operators: transform the module before torch.export."
        )
    if not isinstance(model, nn.Module):
        raise PassError(f"transform takes a torch.nn.Module, got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise PassError(
            f"{type(model).__name__} is compiled TorchScript, whose layers cannot be exchanged: "
            f"transform the Python module before scripting or tracing it."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise PassError(
            "DistributedDataParallel has registered the parameters it synchronises: transform "
            "the module inside, model.module, and wrap the result."
        )
    # torch.compile returns a wrapper around the module it was given.
    return getattr(model, "_orig_mod", model)
