"""What users pass as ``example_inputs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qcompile.errors import ConfigurationError

__all__ = ["Inputs"]


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example_inputs: Any) -> Inputs | None:
        """Read what a user passes as ``example_inputs``.

        Args:
            example_inputs: a tensor, a sequence of positional arguments, a mapping of keyword
                arguments, or ``None``.

        Raises:
            ConfigurationError: it is none of these, or holds NumPy arrays.
        """
        if example_inputs is None:
            return None
        if isinstance(example_inputs, torch.Tensor):
            found = cls((example_inputs,))
        elif isinstance(example_inputs, Mapping):
            found = cls((), dict(example_inputs))
        elif isinstance(example_inputs, tuple | list):
            found = cls(tuple(example_inputs))
        else:
            raise ConfigurationError(
                f"example_inputs must be a tensor, a tuple of positional arguments or a dict of "
                f"keyword arguments, got {type(example_inputs).__name__}."
            )
        for where, value in [*enumerate(found.args), *found.kwargs.items()]:
            if type(value).__module__.partition(".")[0] == "numpy":
                raise ConfigurationError(
                    f"example_inputs[{where!r}] is a NumPy {type(value).__name__}; the model takes "
                    f"tensors: use torch.as_tensor."
                )
        return found
