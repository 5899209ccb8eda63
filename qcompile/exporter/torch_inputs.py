"""Example inputs of a torch module: checked, resized to another batch, named for onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def split(
    model: nn.Module | ExportedProgram, example_inputs: Any, what: str = "example_inputs"
) -> Arguments:
    """Bring inputs of one call into one form, on the CPU.

    Args:
        model: a program brings its own where there are none.
        example_inputs: one tensor, a sequence of positional inputs or a mapping of keyword inputs.
        what: the argument's name, for messages.

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
            f"export: {what} must be a tuple of the inputs of forward, one tensor, or a mapping of "
            f"keyword inputs; got {type(example_inputs).__name__}."
        )
    args, kwargs = pytree.tree_map(_to_cpu, (tuple(example_inputs), kwargs))
    arguments = Arguments(args, kwargs)
    if not arguments.tensors or any(tensor.numel() == 0 for tensor in arguments.tensors):
        raise DataError(f"export: {what} hold no tensor, or an empty one.")
    return arguments


def joined(
    model: nn.Module | ExportedProgram, inputs: Any, names: Sequence[str], what: str
) -> dict[str, np.ndarray]:
    """Return inputs of many rows as arrays under the graph's input names.

    Args:
        model: what they are for.
        inputs: tensors or NumPy arrays in the form of example inputs; or batches of those, such as
            a list of tuples or a data loader, which are joined along the first dimension.
        names: of the graph's inputs.
        what: the argument's name, for messages.

    Raises:
        DataError: there are none, or batches differ in shape or type.
        ExportError: the graph reads another number of tensors.
    """
    inputs = pytree.tree_map(_as_tensor, inputs)
    batches = list(inputs) if _is_batches(inputs, len(names)) else [inputs]
    feeds = [
        feeds_for(split(model, pytree.tree_map(_as_tensor, batch), what), names, what)
        for batch in batches
    ]
    if not feeds:
        raise DataError(f"export: {what} hold no batch.")
    try:
        return {name: np.concatenate([each[name] for each in feeds]) for name in names}
    except ValueError as error:
        raise DataError(f"export: the batches of {what} do not fit each other: {error}") from error


def _is_batches(inputs: Any, count: int) -> bool:
    """Whether inputs are several calls', not the ``count`` tensors of one."""
    if isinstance(inputs, torch.Tensor | Mapping | tuple | str):
        return False
    if not isinstance(inputs, list):
        return isinstance(inputs, Iterable)
    return len(inputs) != count or not all(isinstance(each, torch.Tensor) for each in inputs)


def _as_tensor(leaf: Any) -> Any:
    return torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf


def feeds_for(
    arguments: Arguments, names: Sequence[str], what: str = "example_inputs"
) -> dict[str, np.ndarray]:
    """Return the tensors as arrays under the graph's input names.

    Raises:
        ExportError: the graph reads another number of tensors.
    """
    tensors = arguments.tensors
    if len(tensors) != len(names):
        raise ExportError(
            f"export: the graph reads {len(names)} tensors ({', '.join(names)}), but "
            f"{what} hold {len(tensors)}."
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
