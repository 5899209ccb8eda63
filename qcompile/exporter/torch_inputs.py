"""Example inputs of a torch module: checked, resized to another batch, named for onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from qcompile.errors import DataError, ExportError


@dataclass(frozen=True)
class Arguments:
    """What a module is called with.

    Args:
        args: positional inputs.
        kwargs: keyword inputs.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Every tensor in the inputs, in the order in which a graph numbers them."""
        return [
            leaf
            for leaf in pytree.tree_leaves((self.args, self.kwargs))
            if isinstance(leaf, torch.Tensor)
        ]

    def resized(self, batched: Sequence[int], rows: int) -> Arguments:
        """Return the inputs with ``rows`` rows, the given ones over and over.

        Args:
            batched: which of :attr:`tensors` have the batch as their first dimension.
            rows: the batch size.
        """
        chosen = {id(self.tensors[index]) for index in batched}

        def resize(leaf: Any) -> Any:
            if id(leaf) not in chosen:
                return leaf
            return leaf[torch.arange(rows, device=leaf.device) % leaf.shape[0]]

        args, kwargs = pytree.tree_map(resize, (self.args, self.kwargs))
        return Arguments(tuple(args), kwargs)

    def cases(self, batched: Sequence[int]) -> Iterator[Arguments]:
        """Yield these inputs and, where a batch varies, the same with one row more."""
        yield self
        if batched:
            yield self.resized(batched, self.tensors[batched[0]].shape[0] + 1)


def split(model: nn.Module | ExportedProgram, example_inputs: Any) -> Arguments:
    """Bring example inputs into one form, on the CPU.

    Raises:
        DataError: there are none, or none is a tensor with elements.
    """
    if example_inputs is None and isinstance(model, ExportedProgram):
        example_inputs, kwargs = model.example_inputs or ((), {})
    elif isinstance(example_inputs, Mapping):
        example_inputs, kwargs = (), dict(example_inputs)
    else:
        kwargs = {}
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if not isinstance(example_inputs, tuple | list):
        raise DataError(
            "export: example_inputs must be a tuple of the inputs of forward, one tensor, or a "
            f"mapping of keyword inputs; got {type(example_inputs).__name__}."
        )
    args, kwargs = pytree.tree_map(_to_cpu, (tuple(example_inputs), kwargs))
    arguments = Arguments(args, kwargs)
    if not arguments.tensors or any(tensor.numel() == 0 for tensor in arguments.tensors):
        raise DataError("export: example_inputs hold no tensor, or an empty one.")
    return arguments


def feeds_for(arguments: Arguments, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the tensors as arrays under the graph's input names.

    Raises:
        ExportError: the graph reads another number of tensors.
    """
    tensors = arguments.tensors
    if len(tensors) != len(names):
        raise ExportError(
            f"export: the graph reads {len(names)} tensors ({', '.join(names)}), but "
            f"example_inputs hold {len(tensors)}."
        )
    return {name: _array(tensor) for name, tensor in zip(names, tensors, strict=True)}


def arrays(outputs: Any) -> list[np.ndarray]:
    """Return every tensor in a module's outputs as an array, in the order of the graph's."""
    leaves = pytree.tree_leaves(outputs)
    return [_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()
