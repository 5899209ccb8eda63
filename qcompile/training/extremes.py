"""What goes wrong first when a network diverges: which layer, which parameter, how large.

Quadratic layers square the scale of what they are given, so a network of them can go from sound to
NaN within a few steps. These watches cost a maximum an output and a norm a gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from qcompile.errors import ConfigurationError, QCompileWarning, TrainingError
from qcompile.nn.quadratic import QuadraticBlock

__all__ = ["Clipped", "ExtremeValues", "Largest", "clip_gradients"]


@dataclass
class Largest:
    """The largest outputs of one layer.

    Args:
        layer: its qualified name.
        kind: its type.
        last: largest absolute output of the latest call that was looked at.
        ever: of all of them.
    """

    layer: str
    kind: str
    last: float = 0.0
    ever: float = 0.0


class ExtremeValues:
    """Watches the outputs of a model's layers in training, as a context manager.

    In a call in training mode, an output with NaN or infinity stops with the name of the first
    layer that made one; one beyond ``limit`` is a warning, once a layer. Compiled models call no
    hooks of their layers: watch the model before it is compiled.

    Args:
        model: layers without children are watched, and quadratic blocks.
        limit: absolute value beyond which an output is extreme.
        every: look at every so many calls of a layer.

    Raises:
        ConfigurationError: a number is out of range.
        TrainingError: within a call of the model, as described.
    """

    def __init__(self, model: nn.Module, limit: float = 1e6, every: int = 1) -> None:
        if not limit > 0 or every < 1:
            raise ConfigurationError(
                f"ExtremeValues: limit must be positive and every at least 1, got {limit!r} and "
                f"{every!r}."
            )
        self.limit, self.every = limit, every
        self._model = model
        self._handles: list[Any] = []
        self._calls: dict[str, int] = {}
        self._found: dict[str, Largest] = {}

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            # A block that recomputes in its backward pass calls no hooks of its parts.
            if isinstance(module, QuadraticBlock) or not any(True for _ in module.children()):
                self._handles.append(module.register_forward_hook(_Watch(self, name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    @property
    def largest(self) -> list[Largest]:
        """What was found, the layer with the largest output first."""
        return sorted(self._found.values(), key=lambda each: -each.ever)

    def look(self, name: str, module: nn.Module, output: Any) -> None:
        """Look at what a layer returned."""
        calls = self._calls[name] = self._calls.get(name, -1) + 1
        if calls % self.every or not module.training:
            return
        for tensor in _floating(output):
            size = float(tensor.detach().abs().amax()) if tensor.numel() else 0.0
            where = f"layer {name or '(the model itself)'} ({type(module).__name__})"
            if not math.isfinite(size):
                before = [each.layer for each in self._found.values() if each.last > self.limit]
                after = f" Large before it: {', '.join(before)}." if before else ""
                raise TrainingError(
                    f"{where} returned NaN or infinity in its call {calls + 1}.{after} Lower the "
                    "learning rate, that of quadratic terms above all (quadratic_groups), clip "
                    "gradients (clip_gradients), or put a normalisation before the layer."
                )
            found = self._found.setdefault(name, Largest(name, type(module).__name__))
            if size > self.limit >= found.ever:
                warnings.warn(
                    f"{where} returned {size:.3g}, beyond {self.limit:g}, in its call {calls + 1}.",
                    QCompileWarning,
                    stacklevel=2,
                )
            found.last, found.ever = size, max(found.ever, size)


class _Watch:
    """A forward hook, which a model can be pickled with."""

    def __init__(self, watch: ExtremeValues, name: str) -> None:
        self.watch, self.name = watch, name

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self.watch.look(self.name, module, output)


def _floating(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _floating(each)
    elif isinstance(output, dict):
        yield from _floating(list(output.values()))


class Clipped(NamedTuple):
    """What clipping found.

    Args:
        norm: Euclidean norm of all gradients together, before.
        factor: what they were multiplied by, at most 1.
        largest: name of the parameter with the largest gradient; empty where none has one.
        largest_norm: norm of that gradient, before.
    """

    norm: float
    factor: float
    largest: str
    largest_norm: float


@torch.no_grad()
def clip_gradients(model: nn.Module, max_norm: float) -> Clipped:
    """Scale all gradients so that their norm together is at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_``, row-sparse gradients included, but for knowing names.

    Args:
        model: whose parameters have gradients.
        max_norm: largest norm; infinity only looks.

    Raises:
        ConfigurationError: ``max_norm`` is not positive.
        TrainingError: a gradient holds NaN or infinity; no gradient was changed.
    """
    if not max_norm > 0:
        raise ConfigurationError(f"clip_gradients: max_norm must be positive, got {max_norm!r}.")
    held = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not held:
        return Clipped(0.0, 1.0, "", 0.0)
    norms = torch.stack([torch.linalg.vector_norm(_values(grad)).float().cpu() for _, grad in held])
    worst = int(norms.argmax())
    broken = [name for (name, _), norm in zip(held, norms, strict=True) if not norm.isfinite()]
    if broken:
        raise TrainingError(
            f"the gradient of {broken[0]} holds NaN or infinity"
            + (f", and so do those of {len(broken) - 1} more parameters" if broken[1:] else "")
            + "; no parameter was changed. Lower the learning rate, or start from the checkpoint "
            "before."
        )
    norm = float(torch.linalg.vector_norm(norms.double()))
    factor = min(1.0, max_norm / (norm + 1e-6))
    if factor < 1:
        for _, grad in held:
            grad.mul_(factor)
    return Clipped(norm, factor, held[worst][0], float(norms[worst]))


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce()._values() if gradient.is_sparse else gradient
