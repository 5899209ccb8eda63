"""Reads what the command line says about a model: example inputs, quadratic and sparse options."""

from __future__ import annotations

import argparse
import math
from typing import Any

from qcompile.config import LSH, Quadratic
from qcompile.errors import ConfigurationError

_TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
_MOST_ELEMENTS = 1 << 28


def example_inputs(specifications: list[str]) -> tuple[Any, ...] | None:
    """Make the tensors that ``--input`` describes: normal for floats, zeros for the rest.

    Raises:
        ConfigurationError: a specification is malformed or absurdly large.
    """
    if not specifications:
        return None
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors = []
    for specification in specifications:
        shape, type_name = parse_shape(specification)
        dtype = getattr(torch, type_name)
        if dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            tensors.append(torch.zeros(shape, dtype=dtype))
    return tuple(tensors)


def parse_shape(specification: str) -> tuple[tuple[int, ...], str]:
    """Split ``2x16:int64`` into its shape and type name.

    Raises:
        ConfigurationError: see :func:`example_inputs`.
    """
    dimensions, _, type_name = specification.partition(":")
    type_name = type_name or "float32"
    try:
        shape = tuple(int(part) for part in dimensions.lower().split("x"))
    except ValueError as error:
        raise ConfigurationError(
            f"--input {specification!r}: dimensions are whole numbers joined by 'x', "
            "as in 1x3x224x224 or 2x16:int64."
        ) from error
    if type_name not in _TYPES:
        raise ConfigurationError(
            f"--input {specification!r}: unknown type {type_name!r}; known: {', '.join(_TYPES)}."
        )
    if min(shape) < 1 or math.prod(shape) > _MOST_ELEMENTS:
        raise ConfigurationError(
            f"--input {specification!r}: every dimension must be at least 1 and their product "
            f"at most {_MOST_ELEMENTS:,}."
        )
    return shape, type_name


def quadratic_option(options: argparse.Namespace) -> Quadratic | None:
    """Return the configuration that ``--quadratic`` and its companions ask for.

    Raises:
        ConfigurationError: the form is unknown, or companions come without a form.
    """
    surroundings = {
        name: getattr(options, name)
        for name in ("batch_norm", "activation")
        if getattr(options, name) is not None
    }
    if options.quadratic is None:
        for name in surroundings:
            raise ConfigurationError(
                f"--{name.replace('_', '-')} says what becomes of the neighbours of quadratic "
                "layers: give --quadratic FORM as well."
            )
        return None
    return Quadratic(
        options.quadratic,
        init=options.init,
        where=options.where,
        exclude=options.exclude,
        **surroundings,
    )


def memory_option(options: argparse.Namespace) -> int | str | None:
    """Return the level that ``--memory`` asks for, ``auto`` or ``None``."""
    return int(options.memory) if (options.memory or "").isdigit() else options.memory


def sparse_option(options: argparse.Namespace) -> LSH | None:
    """Return the configuration that ``--sparse-output`` asks for."""
    return LSH(family=options.sparse_output) if options.sparse_output else None
