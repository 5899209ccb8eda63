"""One training step, the same for the prediction and for the measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._pytree import tree_leaves, tree_map

from qcompile.config import LOSSES, OPTIMIZERS, choose
from qcompile.errors import ConfigurationError, PassError
from qcompile.memory.layers import first_tensor

__all__ = ["Call", "TrainingStep"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
LossFunction = Callable[..., Tensor]


def _own(name: str, **options: Any) -> OptimizerFactory:
    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        import qcompile.optim

        optimizer: torch.optim.Optimizer = getattr(qcompile.optim, name)(parameters, **options)
        return optimizer

    return make


_FACTORIES: dict[str, OptimizerFactory] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "qcompile-sgd": _own("SGD", lr=1e-3),
    "qcompile-momentum": _own("SGD", lr=1e-3, momentum=0.9),
    "qcompile-adam": _own("Adam"),
    "qcompile-adamw": _own("AdamW"),
}

_TYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Call:
    """What a model is called with.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        target: labels for the loss or for a sparse output layer, or None.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: Any = None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, however nested."""
        leaves = tree_leaves((self.args, self.kwargs, self.target))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Call:
        """Return the call with every tensor replaced."""

        def replace(leaf: Any) -> Any:
            return function(leaf) if isinstance(leaf, Tensor) else leaf

        return Call(*tree_map(replace, (self.args, self.kwargs, self.target)))

    def resized(self, batch_size: int | None) -> Call:
        """Return the call with another batch size, by repeating or dropping examples.

        The first axis of the first tensor is the batch, and so is that of every other tensor which
        is as long.

        Raises:
            ConfigurationError: there is no such axis.
        """
        if batch_size is None:
            return self
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigurationError(f"batch_size must be a positive integer, got {batch_size!r}.")
        axes = [tensor.shape[0] for tensor in self.tensors if tensor.dim()]
        if not axes or axes[0] < 1:
            raise ConfigurationError("batch_size: the example inputs have no tensor with a batch.")

        def resize(tensor: Tensor) -> Tensor:
            if not tensor.dim() or tensor.shape[0] != axes[0] or batch_size == axes[0]:
                return tensor
            examples = torch.arange(batch_size, device=tensor.device) % axes[0]
            return tensor.index_select(0, examples)

        return self.map(resize)


@dataclass(frozen=True)
class TrainingStep:
    """How a model is trained.

    Args:
        optimizer: one of ``OPTIMIZERS`` in :mod:`qcompile.config`, or a function from parameters
            to an optimiser.
        loss: one of ``LOSSES`` there, or a function of the output, and of the target where one is
            given. ``auto`` takes the loss that the model returns, else the cross-entropy of scores
            [batch, classes], else the mean square.
        autocast: type that autocast computes in, or None.
        dtype: type that the model and its floating-point inputs are cast to first, or None.

    Raises:
        ConfigurationError: a name is unknown.
    """

    optimizer: str | OptimizerFactory = "sgd"
    loss: str | LossFunction = "auto"
    autocast: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.optimizer):
            choose("optimizer", self.optimizer, OPTIMIZERS)
        if not callable(self.loss):
            choose("loss", self.loss, LOSSES)
        for what in ("autocast", "dtype"):
            value = getattr(self, what)
            if value is not None:
                # torch.bfloat16 and "bfloat16" are alike.
                object.__setattr__(self, what, str(value).removeprefix("torch."))
                choose(what, getattr(self, what), _TYPES)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""

        def name(value: Any) -> Any:
            return getattr(value, "__qualname__", repr(value)) if callable(value) else value

        return {
            "optimizer": name(self.optimizer),
            "loss": name(self.loss),
            "autocast": self.autocast,
            "dtype": self.dtype,
        }

    @property
    def cast(self) -> torch.dtype | None:
        """Type that floating-point tensors are cast to first, or None."""
        return None if self.dtype is None else _TYPES[self.dtype]

    def place(self, call: Call, device: str) -> Call:
        """Cast and move what a model is called with."""
        return call.map(
            lambda tensor: tensor.to(
                device=device, dtype=self.cast if tensor.is_floating_point() else None
            )
        )

    def make_optimizer(self, model: nn.Module, device: str) -> torch.optim.Optimizer:
        """Return the optimiser of all trainable parameters.

        Raises:
            PassError: there is none.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise PassError(
                "memory: the model has no trainable parameter, so there is no training step; call "
                "model.requires_grad_() first."
            )
        make = self.optimizer if callable(self.optimizer) else _FACTORIES[self.optimizer]
        optimizer = make(parameters)
        if device == "cuda":
            # torch would choose so for itself, but not for the tensors of a prediction.
            for group in optimizer.param_groups:
                if group.get("foreach", True) is None and not group.get("fused"):
                    group["foreach"] = True
        return optimizer

    def run(
        self,
        model: nn.Module,
        call: Call,
        optimizer: torch.optim.Optimizer,
        device: str,
        enter: Callable[[str], None],
        saving: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Take one step.

        Args:
            model: in training mode.
            call: what it is called with.
            optimizer: of its parameters.
            device: type of the device.
            enter: told the name of each phase as it begins, ``end`` at last.
            saving: context for the forward pass and the loss.
        """
        enter("forward")
        optimizer.zero_grad()
        with saving(), self._autocast(device):
            output = _called(model, call)
            enter("loss")
            loss = self._loss(output, call.target)
        enter("backward")
        loss.backward()
        enter("optimizer")
        optimizer.step()
        enter("end")

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device, dtype=_TYPES[self.autocast])

    def _loss(self, output: Any, target: Any) -> Tensor:
        if callable(self.loss):
            return self.loss(output) if target is None else self.loss(output, target)
        own = _own_loss(output) if self.loss == "auto" else None
        if own is not None:
            return own
        scores = first_tensor(output)
        if scores is None or not scores.is_floating_point():
            raise PassError(
                f"memory: the model returns {type(output).__name__}, of which no loss can be made: "
                "pass loss=, a function from the output to a scalar."
            )
        if self.loss == "cross_entropy" or (self.loss == "auto" and scores.dim() == 2):
            return F.cross_entropy(scores, _labels(scores) if target is None else target)
        return scores.sum() if self.loss == "sum" else scores.float().square().mean()


def _called(model: nn.Module, call: Call) -> Any:
    word = _target_word(model) if call.target is not None else None
    kwargs = call.kwargs if word is None else {**call.kwargs, word: call.target}
    return model(*call.args, **kwargs)


def _target_word(model: nn.Module) -> str | None:
    """Return the argument by which a model of sparse output layers takes its target, or None."""
    from qcompile.nn import LSHLinear
    from qcompile.routing import keyword

    if isinstance(model, LSHLinear):
        return "target"
    base = getattr(type(model), "_qcompile_base", None)
    return None if base is None else keyword(base)


def _own_loss(output: Any) -> Tensor | None:
    """Return the scalar that a model itself calls its loss."""
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if loss is None and isinstance(output, Tensor) and output.dim() == 0:
        loss = output
    return loss if isinstance(loss, Tensor) and loss.dim() == 0 else None


def _labels(scores: Tensor) -> Tensor:
    shape = (scores.shape[0], *scores.shape[2:])
    return torch.zeros(shape, dtype=torch.int64, device=scores.device)
